"""A request that was there at two deaths of the engine may be their cause: it is refused."""

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
    """Requests by a digest of their token ids, for sampling hardly matters to a crash."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # count, last one

    def check(self, prompt_ids: Sequence[int]) -> bytes:
        """The request's digest. Raises PoisonRequest."""
        digest = hashlib.sha256(array("i", prompt_ids).tobytes()).digest()
        count, died_at = self._crashes.get(digest, (0, 0.0))
        age_s = self._clock() - died_at
        if count >= MAX_CRASHES and age_s < REFUSED_FOR_S:
            raise PoisonRequest(
                f"the engine died {count} times while it worked on this request: it is refused"
                f" for another {REFUSED_FOR_S - age_s:.0f} s"
            )
        return digest

    def record_crash(self, digests: Iterable[bytes]) -> None:
        """The engine died at these."""
        now = self._clock()
        for digest in digests:
            count, died_at = self._crashes.pop(digest, (0, now))
            self._crashes[digest] = (count + 1 if now - died_at < REFUSED_FOR_S else 1, now)
        while len(self._crashes) > MAX_LISTED:
            self._crashes.popitem(last=False)
