"""Which requests get a place: capacity, priority, Retry-After."""

from __future__ import annotations

import asyncio
import contextlib
import math

from youtu_llm.errors import InvalidRequest, QueueFull
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.requests.options import PRIORITIES
from youtu_llm.service.requests.place import FinishReason, Place
from youtu_llm.service.status import Status
from youtu_llm.settings import Settings

FIRST_GUESS_S = 1.0  # of an answer's duration, until some were measured
WEIGHT = 1 / 8  # of the newest one
LONGEST_RETRY_S = 300
LAST_WORDS_S = 2.0  # for the last event of streams that a drain ended


class Rate:
    """A moving mean of the time for which an answer keeps its place in the engine."""

    def __init__(self) -> None:
        self.mean_answer_s = FIRST_GUESS_S

    def measure(self, took_s: float) -> None:
        self.mean_answer_s += (took_s - self.mean_answer_s) * WEIGHT

    def retry_after_s(self, num_live: int, num_seqs: int) -> int:
        """Whole seconds until the requests that wait now will have been served."""
        rounds = max(1, num_live - num_seqs + 1) / num_seqs
        return max(1, min(math.ceil(rounds * self.mean_answer_s), LONGEST_RETRY_S))


class Admission:
    """The live requests. `config` may be replaced; a request keeps the one it was admitted under.

    A place is free again once its request has ended, though the client may still read.
    """

    def __init__(self, config: LiveConfig, status: Status) -> None:
        self.config = config
        self.live: dict[str, Place] = {}  # oldest first
        self._rate = Rate()
        self._status = status
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def settings(self) -> Settings:
        return self.config.settings

    @property
    def capacity(self) -> int:
        """Most requests at a time: those computed together and those that may wait."""
        return self.settings.engine.max_num_seqs + self.settings.service.queue_size

    def check(self, *, may_replace: bool) -> None:
        """Raises EngineUnavailable or QueueFull if no request could be admitted now.
        `may_replace`: some request may end another one of its session."""
        self._status.require_ready()
        if self._num_free + may_replace <= 0 and self._last_low() is None:
            raise self._full()

    def enter(self, id: str, priority: int, *, replaces: bool) -> Place:
        """A new request's place; `leave` follows. `replaces`: it will end another one.

        A full queue makes room by refusing the newest waiting `low` request for one of a higher
        priority. Raises InvalidRequest for an id in use, EngineUnavailable, QueueFull.
        """
        if id in self.live:
            raise InvalidRequest(f"a request with the id «{id}» is still running")
        hello = self._status.require_ready()
        if len(self.live) >= 2 * self.capacity:  # with those that ended and have not left yet
            raise self._full()
        if self._num_free + replaces <= 0:
            last_low = self._last_low()
            if last_low is None or priority <= last_low.priority:
                raise self._full()
            last_low.end(self._full())
        # Under a rolling window a conversation may outgrow the context: the oldest text goes.
        n_ctx = None if hello.window_tokens else hello.max_model_len
        place = self.live[id] = Place(id, self.config, priority, n_ctx)
        self._idle.clear()
        return place

    def leave(self, place: Place) -> None:
        """The client has its answer or has disconnected."""
        place.end("cancelled")
        if place.computed_s:
            self._rate.measure(place.computed_s)
        del self.live[place.id]
        if not self.live:
            self._idle.set()

    async def drain(self, timeout_s: float, reason: FinishReason) -> None:
        """Waits for the live requests; those that take longer end with the text so far.

        The caller must have stopped admission first.
        """
        if not await self._wait_idle(timeout_s):
            for place in list(self.live.values()):
                place.end(reason)
            await self._wait_idle(LAST_WORDS_S)

    async def _wait_idle(self, timeout_s: float) -> bool:
        """Whether every request left in time."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self.live

    @property
    def _num_free(self) -> int:
        return self.capacity - sum(place.ending is None for place in self.live.values())

    def _last_low(self) -> Place | None:
        low = PRIORITIES["low"]
        places = reversed(self.live.values())
        return next((p for p in places if p.priority == low and p.is_waiting), None)

    def _full(self) -> QueueFull:
        num_live = len(self.live)
        retry_after_s = self._rate.retry_after_s(num_live, self.settings.engine.max_num_seqs)
        return QueueFull(
            f"the queue is full: {num_live} requests run or wait (the limit is"
            f" engine.max_num_seqs + service.queue_size); try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
