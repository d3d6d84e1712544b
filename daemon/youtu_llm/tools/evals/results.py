"""What an evaluation has so far: a file that a kill or a power cut takes nothing from."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from youtu_llm.errors import InvalidRequest, ResourceError

Row = dict[str, Any]


class Results:
    """JSON Lines: what is measured in the first line, then an item a line as it becomes known.

    Opening a file with the same first line goes on with it; a line that was not finished is
    dropped. One process writes at a time. Raises InvalidRequest for another run's file.
    """

    def __init__(self, path: Path, about: Row) -> None:
        self.path = path
        self.rows: list[Row] = []
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise ResourceError(
                f"{path}: {error.strerror}: choose another file by --out"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(about)
        except BlockingIOError:
            self._file.close()
            raise ResourceError(f"{path}: another run is writing to it") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        """On disk when this returns."""
        self._append(row)
        self.rows.append(row)

    def _append(self, row: Row) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, about: Row) -> None:
        self._file.seek(0)
        whole = self._file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        if not whole:
            self._append(about)
            return
        try:
            first, *self.rows = map(json.loads, whole.splitlines())
        except ValueError:
            first = None
        if first != about:
            raise InvalidRequest(
                f"{self.path} holds something else than this evaluation, or another version of"
                " its data or model: choose another file by --out, or remove it"
            )
