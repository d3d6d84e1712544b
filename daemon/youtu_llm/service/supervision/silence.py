"""The heartbeat timeout of an engine, scaled to its current step and its measured speed."""

from __future__ import annotations

import time

from youtu_llm.protocol import FromEngine, Heartbeat

SLOWEST_S_PER_TOKEN = 0.1  # assumed before the first measured step
SAFETY_FACTOR = 4.0  # steps of one size vary: attention grows with the context
DECAY = 0.9  # of the slowest measured speed, per faster step


class SilenceLimit:
    """A step of many tokens may take four times as long as its size took before, so a long
    prefill on a slow machine does not count as a hang."""

    def __init__(self) -> None:
        self.heard_at = time.monotonic()
        self.num_messages = 0
        self._step_tokens = 0  # of the running step
        self._s_per_token = 0.0

    def heard(self, message: FromEngine, now: float) -> None:
        if self._step_tokens:
            measured = (now - self.heard_at) / self._step_tokens
            self._s_per_token = max(measured, self._s_per_token * DECAY)
        self._step_tokens = message.step_tokens if isinstance(message, Heartbeat) else 0
        self.heard_at = now
        self.num_messages += 1

    def limit_s(self, idle_limit_s: float) -> float:
        """The timeout now, in seconds. `idle_limit_s`: that of an idle engine, the minimum."""
        if not self._s_per_token:
            return idle_limit_s + SLOWEST_S_PER_TOKEN * self._step_tokens
        return max(idle_limit_s, SAFETY_FACTOR * self._s_per_token * self._step_tokens)
