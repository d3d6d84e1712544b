"""How long an engine may be silent, from what it is doing and how fast it was at that."""

from __future__ import annotations

import time

from youtu_llm.protocol import FromEngine, Heartbeat

SLOWEST_S_PER_TOKEN = 0.1  # until a step was measured
SAFETY_FACTOR = 4.0  # steps of one size differ: attention grows with the context
DECAY = 0.9  # of the slowest step so far, at each faster one


class SilenceLimit:
    """One engine's. `silence_s` is the least patience, with an engine that has nothing to do.

    A step of many tokens gets as long as such steps took, four times over, so that a long prefill
    on a slow machine is not taken for a hang.
    """

    def __init__(self) -> None:
        self.heard_at = time.monotonic()
        self.num_messages = 0
        self._step_tokens = 0  # of the step that runs
        self._s_per_token = 0.0

    def heard(self, message: FromEngine, now: float) -> None:
        if self._step_tokens:
            measured = (now - self.heard_at) / self._step_tokens
            self._s_per_token = max(measured, self._s_per_token * DECAY)
        self._step_tokens = message.step_tokens if isinstance(message, Heartbeat) else 0
        self.heard_at = now
        self.num_messages += 1

    def limit_s(self, silence_s: float) -> float:
        if not self._s_per_token:
            return silence_s + SLOWEST_S_PER_TOKEN * self._step_tokens
        return max(silence_s, SAFETY_FACTOR * self._s_per_token * self._step_tokens)
