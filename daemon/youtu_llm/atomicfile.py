"""Files that are whole after a power cut: the old content or the new, never neither."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


def replace(file: Path, data: bytes) -> None:
    """Write `data` as the whole content of `file`, in a folder that exists; when it returns
    the disk has it. Owner and mode of a file that is replaced stay. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            mode: Any = file.stat() if file.exists() else None
            os.fchmod(descriptor, mode.st_mode & 0o7777 if mode else 0o644)
            if mode and os.geteuid() == 0:
                os.fchown(descriptor, mode.st_uid, mode.st_gid)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
