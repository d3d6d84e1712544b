"""How fast answers come, for Retry-After."""

from __future__ import annotations

import math

FIRST_GUESS_S = 1.0  # that an answer takes, until some were measured
WEIGHT = 1 / 8  # of the newest one
LONGEST_RETRY_S = 300


class Rate:
    """A moving mean of the time for which an answer keeps its place in the engine."""

    def __init__(self) -> None:
        self.mean_answer_s = FIRST_GUESS_S

    def measure(self, took_s: float) -> None:
        self.mean_answer_s += (took_s - self.mean_answer_s) * WEIGHT

    def retry_after_s(self, num_live: int, num_seqs: int) -> int:
        """Until those who wait now will have been served, in whole seconds."""
        rounds = max(1, num_live - num_seqs + 1) / num_seqs
        return max(1, min(math.ceil(rounds * self.mean_answer_s), LONGEST_RETRY_S))
