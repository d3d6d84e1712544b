"""Refuse a request that was running when the engine crashed twice."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from youtu_llm.errors import YoutuError

MAX_CRASHES = 2
REFUSED_FOR_S = 600.0
MAX_LISTED = 1024


class PoisonRequest(YoutuError):
    code = "kills_engine"
    status = 422


class PoisonList:
    """Requests by a digest of their token ids: a crash hardly depends on the sampling."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: OrderedDict[bytes, tuple[int, float]] = (
            OrderedDict()
        )  # (count, time of the last)

    def check(self, prompt_ids: Sequence[int]) -> bytes:
        """Return the request's digest. Raises PoisonRequest."""
        digest = hashlib.sha256(array("i", prompt_ids).tobytes()).digest()
        count, crashed_at = self._crashes.get(digest, (0, 0.0))
        age_s = self._clock() - crashed_at
        if count >= MAX_CRASHES and age_s < REFUSED_FOR_S:
            raise PoisonRequest(
                f"the engine crashed {count} times while it was processing this request:"
                f" refused for another {REFUSED_FOR_S - age_s:.0f} s"
            )
        return digest

    def record_crash(self, digests: Iterable[bytes]) -> None:
        """The engine crashed while these requests ran."""
        now = self._clock()
        for digest in digests:
            count, crashed_at = self._crashes.pop(digest, (0, now))
            self._crashes[digest] = (count + 1 if now - crashed_at < REFUSED_FOR_S else 1, now)
        while len(self._crashes) > MAX_LISTED:
            self._crashes.popitem(last=False)
