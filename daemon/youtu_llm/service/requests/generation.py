"""One answer in the making: the engine's tokens become text, and an ending."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from youtu_llm.errors import EngineFault, YoutuError
from youtu_llm.postprocess import PunctuationStream
from youtu_llm.protocol import Output, Usage
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.repetition import RepetitionDetector
from youtu_llm.service.supervision.client import OutputStream
from youtu_llm.settings import Settings
from youtu_llm.text.stream import TextStream

# What /chat says. OpenAI's routes only have the first two.
FinishReason = Literal[
    "stop",
    "length",
    "interrupted",  # by the next request of its session, or by who listened
    "cancelled",
    "time_limit",
    "repetition",  # it said the same over and over
    "switched",  # the profile's drain ended
    "shutdown",
]


@dataclass(frozen=True)
class Timings:
    queue_ms: float
    ttft_ms: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Result:
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass
class _Clock:
    """Monotonic seconds."""

    received_at: float = field(default_factory=time.monotonic)
    submitted_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0


class Generation:
    """An async iterator over the answer's text; afterwards `result` is set.

    Raises EngineFault when the engine fails it. Order: bytes to text, stop strings,
    punctuation.
    """

    def __init__(self, id: str, config: LiveConfig, metrics: Metrics, priority: int) -> None:
        self.id = id
        self.priority = priority
        self.config = config  # the one it was admitted under; a switch does not touch it
        self.clock = _Clock()
        self.num_prompt_tokens = 0
        self.num_tokens = 0
        self.num_dropped = 0  # tokens its session forgot before the prompt was made
        self.result: Result | None = None
        self.is_live = True  # until who asked is answered or gone
        self.stopped_by: FinishReason | None = None
        self._refusal: YoutuError | None = None
        self._fault: EngineFault | None = None  # to be raised when what came before it is read
        num_repeated = config.settings.bounds.repetition_tokens
        self._repetition = RepetitionDetector(num_repeated) if num_repeated else None
        self._token_ids: list[int] = []
        self._shown: list[int] = []  # characters that may be shown after each of these
        self._num_chars = 0
        self._metrics = metrics
        self._outputs: OutputStream | None = None
        self._text: TextStream | None = None
        self._punctuation: PunctuationStream | None = None
        self._parts: list[str] = []
        self._unread = ""

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "".join(self._parts)

    def ids_of(self, num_chars: int | None) -> list[int]:
        """The ids that say the first `num_chars` characters, None: all."""
        if num_chars is None:
            return self._token_ids
        return self._token_ids[: bisect.bisect_left(self._shown, num_chars) + 1 if num_chars else 0]

    @property
    def is_staying(self) -> bool:
        """It keeps its place: nothing has ended it yet."""
        return self.stopped_by is None and self._refusal is None

    @property
    def is_waiting(self) -> bool:
        """No engine has begun it."""
        return self.is_staying and (self._outputs is None or not self._outputs.has_begun)

    @property
    def settings(self) -> Settings:
        return self.config.settings

    async def begin(
        self,
        submit: Callable[[], OutputStream],
        text: TextStream,
        punctuation: PunctuationStream | None,
    ) -> None:
        """Submits and waits for the engine's first event, which decides the HTTP status."""
        if self._refusal is not None:
            raise self._refusal
        self._text, self._punctuation = text, punctuation
        self.clock.submitted_at = time.monotonic()
        self._outputs = submit()
        if self.stopped_by is not None:
            self._outputs.abort()
        await self._read()

    def stop(self, reason: FinishReason) -> None:
        """Ends the answer with what it has, at the engine's next step. The first reason counts."""
        if self.stopped_by is None and self.result is None:
            self.stopped_by = reason
            self.abort()

    def refuse(self, error: YoutuError) -> None:
        """Ends one that `is_waiting` with `error`."""
        self._refusal = error
        self.abort()

    def abort(self) -> None:
        """Frees the engine's side. Idempotent."""
        if self._outputs is not None and self.result is None:
            self._outputs.abort()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        while not self._unread:
            if self.result is not None:
                raise StopAsyncIteration
            await self._read()
        delta, self._unread = self._unread, ""
        return delta

    async def _read(self) -> None:
        """Takes one Output in."""
        assert self._outputs is not None
        assert self._text is not None
        if self._fault is not None:
            raise self._fault
        try:
            output = await self._outputs.__anext__()
        except YoutuError:
            if self.is_staying:
                raise
            output = Output(self.id, finish_reason="abort")  # what it was to say is said
        if self._refusal is not None:
            raise self._refusal
        if output.token_ids and self.stopped_by is None:
            self._tick(len(output.token_ids))
            for token_id in output.token_ids:
                self._take(self._text, token_id)
        if output.finish_reason == "error":
            self._fault = EngineFault(output.error_message, code=output.error_code)
            if not self._unread:
                raise self._fault
        elif output.finish_reason is not None:
            self._finish(output)

    def _take(self, text: TextStream, token_id: int) -> None:
        if self.stopped_by is not None:
            return
        self._say(text.push((token_id,)))
        self._token_ids.append(token_id)
        self._shown.append(self._num_chars)
        if text.stop_hit:
            self.stop("stop")
        elif self._repetition is not None and self._repetition.push(token_id):
            self.stop("repetition")

    def _say(self, delta: str) -> None:
        if self._punctuation is not None:
            delta = self._punctuation.push(delta)
        self._append(delta)

    def _append(self, delta: str) -> None:
        if delta:
            self._unread += delta
            self._parts.append(delta)
            self._num_chars += len(delta)

    def _tick(self, num_tokens: int) -> None:
        now = time.monotonic()
        clock = self.clock
        if self.num_tokens == 0:
            clock.first_token_at = now
            ttft_s = now - clock.received_at
            self._metrics.ttft.observe(ttft_s)
            budget_ms = self.settings.budget.first_word_ms
            if budget_ms and ttft_s * 1e3 > budget_ms:
                self._metrics.first_word_missed.labels(self.settings.profile).inc()
        else:
            self._metrics.inter_token.observe((now - clock.last_token_at) / num_tokens)
        clock.last_token_at = now
        self.num_tokens += num_tokens

    def _finish(self, output: Output) -> None:
        assert self._text is not None
        reason: FinishReason
        if self.stopped_by is not None:
            reason = self.stopped_by
        elif output.finish_reason == "length":
            reason = "length"
        elif output.finish_reason == "stop":
            reason = "stop"
        else:
            reason = "cancelled"
        self._say(self._text.finish())
        if self._punctuation is not None:
            # Cut by a stop string, the last sentence may not be over: no final mark then.
            self._append(self._punctuation.finish("cut" if self._text.stop_hit else reason))
        usage = output.usage or Usage(self.num_prompt_tokens, completion_tokens=self.num_tokens)
        if self.num_dropped:
            num_dropped = usage.dropped_tokens + self.num_dropped
            usage = msgspec.structs.replace(usage, dropped_tokens=num_dropped)
        self.result = Result(self.text, reason, usage, self._timings(usage))
        self._count(self.result)

    def _timings(self, usage: Usage) -> Timings:
        clock = self.clock
        decode_s = clock.last_token_at - clock.first_token_at
        queue_s = clock.submitted_at - clock.received_at + usage.queue_s
        ttft_s = max(0.0, clock.first_token_at - clock.received_at)
        return Timings(
            queue_ms=round(queue_s * 1e3, 3),
            ttft_ms=round(ttft_s * 1e3, 3),
            decode_tokens_per_s=round((self.num_tokens - 1) / decode_s, 3) if decode_s else 0.0,
        )

    def count_hang_up(self) -> None:
        """Who asked went away before the end."""
        if self.result is None:
            self._metrics.requests.labels("cancelled", self.settings.profile).inc()
            self._metrics.prompt_tokens.inc(self.num_prompt_tokens)
            self._metrics.completion_tokens.inc(self.num_tokens)

    def _count(self, result: Result) -> None:
        metrics, usage = self._metrics, result.usage
        metrics.requests.labels(result.finish_reason, self.settings.profile).inc()
        metrics.queue.observe(result.timings.queue_ms / 1e3)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)
