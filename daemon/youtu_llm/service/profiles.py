"""The live configuration and its change while the daemon runs."""

from __future__ import annotations

import logging

from youtu_llm import config
from youtu_llm.config import Loaded, Settings
from youtu_llm.errors import ConfigError, InvalidRequest, YoutuError
from youtu_llm.service.pipeline import Pipeline

logger = logging.getLogger(__name__)

# What the engine and the listeners were started with.
FIXED_SECTIONS = ("model", "engine", "service", "context", "cache")


class NeedsRestart(YoutuError):
    code = "restart_needed"
    status = 501


class Profiles:
    """All is read and checked before anything changes; a request keeps what it began with."""

    def __init__(self, loaded: Loaded, pipeline: Pipeline) -> None:
        self._loaded = loaded
        self._pipeline = pipeline

    def names(self) -> list[str]:
        return list(config.profiles(self._loaded.sources.profile_dirs))

    def use(self, name: str) -> None:
        """Raises InvalidRequest with every problem of the files, NeedsRestart."""
        self._apply(name)

    def reload(self) -> None:
        """What the files say now, the profile included. Raises as `use` does."""
        self._apply(None)

    def _apply(self, name: str | None) -> None:
        try:
            loaded = self._loaded.again(profile=name)
        except ConfigError as error:
            raise InvalidRequest(error.message, param="name" if name else None) from error
        fixed = _changed_sections(self._pipeline.settings, loaded.settings)
        if fixed:
            raise NeedsRestart(
                f"this changes {', '.join(fixed)}, which needs a restart of the service:"
                f" set the profile «{loaded.settings.profile}» in config.yaml and restart it"
            )
        self._loaded = loaded
        self._pipeline.settings = loaded.settings
        logger.info("profile %s is live", loaded.settings.profile)


def _changed_sections(old: Settings, new: Settings) -> list[str]:
    return [name for name in FIXED_SECTIONS if getattr(old, name) != getattr(new, name)]
