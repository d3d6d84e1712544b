"""What was typed before, over restarts: readline with a file of its own.

A JSON string a line, for readline's own file would take the lines of one message apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import readline
import sys
from collections.abc import Sequence
from pathlib import Path

from youtu_llm import atomicfile, paths

MAX_MESSAGES = 1000


class History:
    @classmethod
    def open(cls, words: Sequence[str]) -> History:
        """Editing with what was typed before, and completion of `words` by Tab."""
        readline.set_auto_history(False)
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("tab: complete")
        readline.set_completer_delims("")
        readline.set_completer(
            lambda text, n: [*(w for w in words if text and w.startswith(text)), None][n:][0]
        )
        history = cls(paths.state_dir() / "chat_history")
        try:
            history._load()
        except OSError as error:
            history._complain(error)
        return history

    def __init__(self, file: Path) -> None:
        self._file: Path | None = file

    def add(self, message: str) -> None:
        readline.add_history(message)
        if self._file is not None:
            try:
                self._append(self._file, message)
            except OSError as error:
                self._complain(error)

    def _load(self) -> None:
        assert self._file is not None
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._file.exists():
            return
        lines = self._file.read_text(encoding="utf-8").splitlines()
        if len(lines) > 2 * MAX_MESSAGES:
            kept = "".join(f"{line}\n" for line in lines[-MAX_MESSAGES:])
            atomicfile.replace(self._file, kept.encode())
        for line in lines[-MAX_MESSAGES:]:
            with contextlib.suppress(ValueError):  # a line that a power cut left half-written
                readline.add_history(str(json.loads(line)))

    def _append(self, file: Path, message: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open(os.open(file, flags, 0o600), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(message) + "\n")  # ASCII: no surrogate can stop it

    def _complain(self, error: OSError) -> None:
        print(f"youtu: the history is not kept: {error.strerror} ({self._file})", file=sys.stderr)
        self._file = None
