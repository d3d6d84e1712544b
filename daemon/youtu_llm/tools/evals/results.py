"""The results of an evaluation so far, in a file that survives a kill or a power cut."""

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
    dropped. Nothing is written before the first item. One process writes at a time. Raises
    InvalidRequest for any other file, and leaves it as it is.
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
            self._head = self._read(_line(about))
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
        self._file.write(self._head + _line(row))
        self._head = b""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def _read(self, head: bytes) -> bytes:
        """Takes the rows in. -> what is to be written before the next one"""
        self._file.seek(0)
        there = self._file.read(len(head))
        if not head.startswith(there):
            raise InvalidRequest(
                f"{self.path} holds another evaluation, or another version of"
                " its data or model: choose another file by --out, or remove it"
            )
        if there != head:  # empty, or cut within it
            self._file.truncate(0)
            return head
        rest = self._file.read()
        rest = rest[: rest.rfind(b"\n") + 1]
        try:
            self.rows = [json.loads(line) for line in rest.splitlines()]
        except ValueError as error:
            raise InvalidRequest(
                f"{self.path} is damaged ({error}): choose another file by --out, or remove it"
            ) from error
        self._file.truncate(len(head) + len(rest))
        return b""


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
