"""The profile chosen through the API, saved across restarts."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from youtu_llm import atomicfile
from youtu_llm.config import Loaded
from youtu_llm.errors import ConfigError

logger = logging.getLogger(__name__)

FILE_NAME = "profile.json"


class _Record(msgspec.Struct, frozen=True):
    profile: str
    instead_of: str  # the profile of the files and flags at that time
    config_mtime_ns: int  # of config.yaml at that time; 0: no such file


class SavedProfile:
    """The latest decision wins: a saved profile holds until config.yaml is written, a flag or
    variable names another profile, or the files are reloaded."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME

    def restore(self, loaded: Loaded) -> tuple[Loaded, str]:
        """`loaded` with the saved profile if that still holds, and an error message, "" if none."""
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except FileNotFoundError:
            return loaded, ""
        except (OSError, msgspec.DecodeError) as error:
            return loaded, f"the saved profile cannot be read ({error}): using config.yaml"
        if record != _record(record.profile, loaded):
            return loaded, ""
        try:
            return loaded.again(profile=record.profile), ""
        except ConfigError as error:
            return loaded, (
                f"the saved profile «{record.profile}» cannot be used, using config.yaml:"
                f" {error.message}"
            )

    def save(self, profile: str | None, loaded: Loaded) -> str:
        """Save `profile`, None: clear it; return an error message, "" if none."""
        try:
            if profile is None:
                self._file.unlink(missing_ok=True)
            else:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                record = _record(profile, loaded.again())
                atomicfile.replace(self._file, msgspec.json.encode(record))
        except (OSError, ConfigError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            problem = f"the profile was not saved ({reason}): it ends with this run"
            logger.warning("%s", problem)
            return problem
        return ""


def _record(profile: str, loaded: Loaded) -> _Record:
    file = loaded.sources.config_file
    mtime_ns = file.stat().st_mtime_ns if file is not None and file.exists() else 0
    return _Record(profile, loaded.settings.profile, mtime_ns)
