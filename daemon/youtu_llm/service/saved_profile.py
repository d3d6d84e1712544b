"""The profile somebody chose while the daemon ran, kept over a reboot."""

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
    instead_of: str  # what the files and flags said then
    config_mtime_ns: int  # of config.yaml then; 0: there was none


class SavedProfile:
    """The last act counts: a choice holds until config.yaml is written, another profile is
    asked for by flag or variable, or the files are reloaded."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME

    def restore(self, loaded: Loaded) -> tuple[Loaded, str]:
        """`loaded` under the choice that still holds, if any, and what is wrong with it."""
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except FileNotFoundError:
            return loaded, ""
        except (OSError, msgspec.DecodeError) as error:
            return loaded, f"the profile chosen before cannot be read ({error}): config.yaml counts"
        if record != _record(record.profile, loaded):
            return loaded, ""
        try:
            return loaded.again(profile=record.profile), ""
        except ConfigError as error:
            return loaded, (
                f"the profile «{record.profile}» chosen before cannot be used, config.yaml"
                f" counts: {error.message}"
            )

    def save(self, profile: str | None, loaded: Loaded) -> str:
        """Keeps the choice, None: forgets it. What went wrong; serving goes on."""
        try:
            if profile is None:
                self._file.unlink(missing_ok=True)
            else:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                record = _record(profile, loaded.again())
                atomicfile.replace(self._file, msgspec.json.encode(record))
        except (OSError, ConfigError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            told = f"the choice of a profile was not saved ({reason}): it ends with this run"
            logger.warning("%s", told)
            return told
        return ""


def _record(profile: str, loaded: Loaded) -> _Record:
    file = loaded.sources.config_file
    mtime_ns = file.stat().st_mtime_ns if file is not None and file.exists() else 0
    return _Record(profile, loaded.settings.profile, mtime_ns)
