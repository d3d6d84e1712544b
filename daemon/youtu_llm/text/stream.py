"""From token ids to the text that may be shown: incremental UTF-8 and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class TokenBytes(Protocol):
    def token_bytes(self, token_id: int) -> bytes: ...


def live_prefix_len(text: str, targets: Sequence[str]) -> int:
    """How many characters at the end of `text`, which holds none of `targets`, may become one."""
    longest = max(map(len, targets), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        tail = text[-length:]
        if any(target.startswith(tail) for target in targets):
            return length
    return 0


class TextStream:
    """The text of one answer, as it may be shown.

    A character is shown once all its bytes are there; U+FFFD stands only for bytes that are
    not UTF-8. Of the stop strings the one that is complete first ends the text (of several
    complete at the same character, the longest); neither it nor anything after it is shown.
    However the tokens are cut into calls, the whole text is the same.
    """

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ValueError("an empty stop string would stop every answer at once")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # a live prefix of a stop string, never as long as the longest of them
        self.stop_hit: str | None = None

    def push(self, token_ids: Iterable[int]) -> str:
        """The text these tokens release; empty after a stop string was met."""
        data = b"".join(map(self._tokenizer.token_bytes, token_ids))
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """What is left at the end of the answer: a held prefix, U+FFFD for a cut character."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, new: str) -> str:
        if self.stop_hit is not None:
            return ""
        text = self._held + new
        hits = [(at + len(s), at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if hits:
            _, start, self.stop_hit = min(hits)
            self._held = ""
            return text[:start]
        shown = len(text) - live_prefix_len(text, self._stop)
        self._held = text[shown:]
        return text[:shown]
