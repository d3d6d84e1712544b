"""Detects an answer that repeats one phrase, as small models may, on its token ids as they come."""

from __future__ import annotations

MIN_REPEATS = 4


class RepetitionDetector:
    """Whether the last `num_tokens` ids are one phrase, at least four times in a row.

    For each period up to a quarter of `num_tokens` it counts the ids that repeated with it so
    far; an id costs one comparison for each period.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._longest_period = num_tokens // MIN_REPEATS
        self._ids: list[int] = []
        self._runs = [0] * (self._longest_period + 1)  # by period

    def push(self, token_id: int) -> bool:
        ids, runs = self._ids, self._runs
        found = False
        for period in range(1, min(self._longest_period, len(ids)) + 1):
            if ids[-period] == token_id:
                runs[period] += 1
                found = found or runs[period] + period >= self._num_tokens
            else:
                runs[period] = 0
        ids.append(token_id)
        if len(ids) > 2 * self._num_tokens:
            del ids[: self._num_tokens]
        return found
