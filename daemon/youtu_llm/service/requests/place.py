"""A request's place, from its admission until its client has the answer or disconnects."""

from __future__ import annotations

import time
from typing import Literal

from youtu_llm.errors import YoutuError
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.supervision.client import OutputStream
from youtu_llm.settings import Settings

# As /chat names them. OpenAI's routes only have the first two.
FinishReason = Literal[
    "stop",
    "length",
    "interrupted",  # by the next request of its session, or by a client of that session
    "cancelled",
    "time_limit",
    "repetition",  # it repeated one phrase
    "switched",  # the drain before a profile switch took too long
    "shutdown",
]


class Place:
    """The request waits until an engine begins it and runs until it has an `ending`: the reason
    why its text is complete, or the error that the client gets instead."""

    def __init__(self, id: str, config: LiveConfig, priority: int, n_ctx: int | None) -> None:
        self.id = id
        self.config = config  # a profile switch does not change it
        self.priority = priority
        self.n_ctx = n_ctx  # most tokens of prompt and answer; None: a rolling window
        self.received_at = time.monotonic()
        self.num_prompt_tokens = 0
        self.num_tokens = 0  # of the answer so far
        self.computed_s = 0.0  # from the engine's first step on it to its last token, once ended
        self.ending: FinishReason | YoutuError | None = None
        self._outputs: OutputStream | None = None

    @property
    def settings(self) -> Settings:
        return self.config.settings

    @property
    def is_waiting(self) -> bool:
        return self.ending is None and (self._outputs is None or not self._outputs.has_begun)

    def follow(self, outputs: OutputStream) -> None:
        """`outputs` are aborted when this ends, at once if it has."""
        self._outputs = outputs
        if self.ending is not None:
            outputs.abort()

    def end(self, ending: FinishReason | YoutuError) -> None:
        """Ends the request at the engine's next step. Only the first ending counts."""
        if self.ending is None:
            self.ending = ending
            if self._outputs is not None:
                self._outputs.abort()
