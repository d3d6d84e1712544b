"""Atomic writes: after a power cut a file has its old content or its new one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


def replace(file: Path, data: bytes) -> None:
    """Write `data` as the whole content of `file`, in a folder that exists, and sync it to
    disk. A replaced file keeps its owner and mode. Raises OSError."""
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
