"""The engine's tokens become an answer's text, and its end an `Answer`."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass

import msgspec

from youtu_llm.errors import EngineFault, YoutuError
from youtu_llm.postprocess import PunctuationStream
from youtu_llm.protocol import Output, Usage
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.place import FinishReason, Place
from youtu_llm.service.requests.repetition import RepetitionDetector
from youtu_llm.service.supervision.client import OutputStream
from youtu_llm.text.stream import TextStream


@dataclass(frozen=True)
class Timings:
    queue_ms: float
    ttft_ms: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class Generation:
    """An async iterator over the answer's text; afterwards `answer` is set.

    Raises the error that ended the request. Order: bytes to text, stop strings, punctuation.
    """

    def __init__(
        self,
        place: Place,
        outputs: OutputStream,
        text: TextStream,
        punctuation: PunctuationStream | None,
        metrics: Metrics,
        num_dropped: int = 0,
    ) -> None:
        """`num_dropped`: tokens that its session dropped to make room for the prompt."""
        self.place = place
        self.answer: Answer | None = None
        num_repeated = place.settings.bounds.repetition_tokens
        self._repetition = RepetitionDetector(num_repeated) if num_repeated else None
        self._token_ids: list[int] = []
        self._shown: list[int] = []  # characters that may be shown after each of these
        self._num_chars = 0
        self._metrics = metrics
        self._outputs = outputs
        self._text = text
        self._punctuation = punctuation
        self._num_dropped = num_dropped
        self._parts: list[str] = []
        self._unread = ""
        self._submitted_at = time.monotonic()
        self._first_token_at = self._last_token_at = 0.0

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._parts)

    def ids_of(self, num_chars: int | None) -> list[int]:
        """The token ids of the first `num_chars` characters, None: all."""
        if num_chars is None:
            return self._token_ids
        return self._token_ids[: bisect.bisect_left(self._shown, num_chars) + 1 if num_chars else 0]

    async def start(self) -> None:
        """Waits for the engine's first event, which decides the HTTP status."""
        await self._read()

    async def finish(self) -> Answer:
        """Reads on to the end."""
        async for _ in self:
            pass
        assert self.answer is not None
        return self.answer

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        while not self._unread:
            if self.answer is not None:
                raise StopAsyncIteration
            await self._read()
        delta, self._unread = self._unread, ""
        return delta

    async def _read(self) -> None:
        """Processes one Output."""
        place = self.place
        if isinstance(place.ending, YoutuError):  # the text before it has been read
            raise place.ending
        try:
            output = await self._outputs.__anext__()
        except YoutuError as error:  # the engine's end; it changes nothing for a request that ended
            place.end(error)
            output = Output(place.id, finish_reason="abort")
        if output.token_ids and place.ending is None:
            self._tick(len(output.token_ids))
            for token_id in output.token_ids:
                self._take(token_id)
        if output.finish_reason == "error":
            place.end(EngineFault(output.error_message, code=output.error_code))
        if isinstance(place.ending, YoutuError):
            if not self._unread:
                raise place.ending
        elif output.finish_reason is not None:
            self._finish(output)

    def _take(self, token_id: int) -> None:
        if self.place.ending is not None:
            return
        self._push_text(self._text.push((token_id,)))
        self._token_ids.append(token_id)
        self._shown.append(self._num_chars)
        if self._text.stop_hit:
            self.place.end("stop")
        elif self._repetition is not None and self._repetition.push(token_id):
            self.place.end("repetition")

    def _push_text(self, delta: str) -> None:
        if self._punctuation is not None:
            delta = self._punctuation.push(delta)
        self._append(delta)

    def _append(self, delta: str) -> None:
        if delta:
            self._unread += delta
            self._parts.append(delta)
            self._num_chars += len(delta)

    def _tick(self, num_tokens: int) -> None:
        now, place = time.monotonic(), self.place
        if place.num_tokens == 0:
            self._first_token_at = now
            ttft_s = now - place.received_at
            self._metrics.ttft.observe(ttft_s)
            budget_ms = place.settings.budget.first_word_ms
            if budget_ms and ttft_s * 1e3 > budget_ms:
                self._metrics.first_word_missed.labels(place.settings.profile).inc()
        else:
            self._metrics.inter_token.observe((now - self._last_token_at) / num_tokens)
        self._last_token_at = now
        place.num_tokens += num_tokens

    def _finish(self, output: Output) -> None:
        place = self.place
        if output.finish_reason == "stop" or output.finish_reason == "length":
            place.end(output.finish_reason)
        else:
            place.end("cancelled")
        reason = place.ending
        assert reason is not None
        assert not isinstance(reason, YoutuError)
        self._push_text(self._text.finish())
        if self._punctuation is not None:
            # Cut by a stop string, the last sentence may not be over: no final mark then.
            self._append(self._punctuation.finish("cut" if self._text.stop_hit else reason))
        usage = output.usage or Usage(place.num_prompt_tokens, completion_tokens=place.num_tokens)
        if self._num_dropped:
            num_dropped = usage.dropped_tokens + self._num_dropped
            usage = msgspec.structs.replace(usage, dropped_tokens=num_dropped)
        queue_s = self._submitted_at - place.received_at + usage.queue_s
        if place.num_tokens:
            place.computed_s = self._last_token_at - place.received_at - queue_s
        self.answer = Answer(self.text, reason, usage, self._timings(queue_s))
        metrics = self._metrics
        metrics.requests.labels(reason, place.settings.profile).inc()
        metrics.queue.observe(queue_s)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)

    def _timings(self, queue_s: float) -> Timings:
        decode_s = self._last_token_at - self._first_token_at
        ttft_s = max(0.0, self._first_token_at - self.place.received_at)
        num_decoded = self.place.num_tokens - 1
        return Timings(
            queue_ms=round(queue_s * 1e3, 3),
            ttft_ms=round(ttft_s * 1e3, 3),
            decode_tokens_per_s=round(num_decoded / decode_s, 3) if decode_s else 0.0,
        )
