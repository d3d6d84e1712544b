"""The open requests of the live engine: ids out, outputs in, one terminal event for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from youtu_llm.errors import EngineUnavailable, InvalidRequest, YoutuError
from youtu_llm.protocol import Abort, Add, Hello, Output, SamplingParams, Step, ToEngine
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.suspects import Suspects


class OutputStream:
    """Async iterator over one request's Outputs; the last has a finish_reason.

    A reader slower than the engine gets several steps' tokens as one Output, so what waits
    here is bounded by the request's max_new_tokens. Raises the YoutuError that ended the
    engine, after what it still delivered.
    """

    def __init__(self, abort: Callable[[], None], digest: bytes) -> None:
        self.digest = digest  # names the request to Suspects
        self._abort = abort
        self._pending: Output | None = None
        self._error: YoutuError | None = None
        self._ended = False
        self._wakeup = asyncio.Event()

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        await self._wakeup.wait()
        self._wakeup.clear()
        output, self._pending = self._pending, None
        if output is None:
            assert self._error is not None
            self._ended = True
            raise self._error
        self._ended = output.finish_reason is not None
        if self._error is not None:
            self._wakeup.set()
        return output

    def abort(self) -> None:
        """Idempotent; the terminal Output still follows."""
        self._abort()

    def put(self, output: Output) -> None:
        if self._pending is not None:
            output = msgspec.structs.replace(
                output, token_ids=self._pending.token_ids + output.token_ids
            )
        self._pending = output
        self._wakeup.set()

    def fail(self, error: YoutuError) -> None:
        self._error = error
        self._wakeup.set()


class EngineClient:
    """Attached to at most one engine; between engines every submit is refused."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._send: Callable[[ToEngine], None] | None = None
        self._open: dict[str, OutputStream] = {}
        self._aborted_at: dict[str, float] = {}
        self._suspects = Suspects()
        self.hello: Hello | None = None

    def attach(self, send: Callable[[ToEngine], None], hello: Hello) -> None:
        self._send, self.hello = send, hello

    def detach(self, error: YoutuError, *, is_death: bool) -> None:
        """The engine is gone: `error` ends every open request at once. A death, unlike an end
        that was wanted, makes them suspect."""
        self._send = self.hello = None
        streams = list(self._open.values())
        if is_death:
            self._suspects.blame(stream.digest for stream in streams)
        self._open.clear()
        self._aborted_at.clear()
        for stream in streams:
            stream.fail(error)

    def submit(
        self, id: str, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> OutputStream:
        """Raises EngineUnavailable without an engine, InvalidRequest if `id` is in use,
        KillsEngine."""
        if self._send is None:
            raise EngineUnavailable("the engine is being restarted", code="engine_restarting")
        if id in self._open:
            raise InvalidRequest(f"a request with the id «{id}» is still running")
        digest = self._suspects.check(prompt_ids)
        stream = self._open[id] = OutputStream(lambda: self.abort(id), digest)
        self._send(Add(id, tuple(prompt_ids), params, priority))
        return stream

    def abort(self, id: str) -> None:
        """Idempotent; an id that has ended is ignored."""
        if self._send is not None and id in self._open and id not in self._aborted_at:
            self._aborted_at[id] = time.monotonic()
            self._send(Abort(id))

    def deliver(self, step: Step) -> None:
        for output in step.outputs:
            stream = self._open.get(output.id)
            if stream is None:
                continue
            if output.finish_reason is not None:
                del self._open[output.id]
                aborted_at = self._aborted_at.pop(output.id, None)
                if aborted_at is not None:
                    self._metrics.cancel_to_free.observe(time.monotonic() - aborted_at)
            stream.put(output)
