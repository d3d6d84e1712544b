"""The open requests: token ids to the live engine, outputs back, one last output for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec

from youtu_llm.errors import InvalidRequest, YoutuError
from youtu_llm.protocol import Abort, Add, Hello, Output, Step, ToEngine
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.supervision.poison import PoisonList


class OutputStream:
    """Async iterator over one request's Outputs; the last has a finish_reason.

    A reader slower than the engine gets the tokens of several steps as one Output, so the backlog
    is bounded by the request's max_new_tokens. Raises the YoutuError that ended the engine, after
    the outputs before it.
    """

    def __init__(self, add: Add, abort: Callable[[], None], digest: bytes) -> None:
        self.add = add
        self.digest = digest  # identifies the prompt to PoisonList
        self.has_begun = False  # an engine computes it; until then it may go to the next engine
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
        """Idempotent; the last Output still follows."""
        self._abort()

    def put(self, output: Output) -> None:
        self.has_begun = True
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
    """Attached to at most one engine. Between two engines it keeps the requests that none has
    begun, until `close`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._send: Callable[[ToEngine], None] | None = None
        self._open: dict[str, OutputStream] = {}
        self._aborted_at: dict[str, float] = {}
        self._poison = PoisonList()
        self._closed: YoutuError | None = None
        self.hello: Hello | None = None

    def attach(self, send: Callable[[ToEngine], None], hello: Hello) -> None:
        """Connects a live engine, which gets the requests that wait for one."""
        self._send, self.hello, self._closed = send, hello, None
        for stream in self._open.values():
            send(stream.add)

    def detach(self, error: YoutuError) -> None:
        """The engine died. `error` ends every request that it had begun; if it died before it
        reported any, every request that it was sent. These become suspects."""
        was_live = self._send is not None
        self._send = self.hello = None
        begun = [stream for stream in self._open.values() if stream.has_begun]
        if was_live and not begun:
            begun = list(self._open.values())
        self._poison.record_crash(stream.digest for stream in begun)
        for id in {*self._aborted_at, *(stream.add.id for stream in begun)}:
            self._open.pop(id).fail(error)
        self._aborted_at.clear()

    def close(self, error: YoutuError) -> None:
        """No engine will start: `error` ends every request and refuses new ones until `attach`."""
        self._send = self.hello = None
        self._closed = error
        streams = list(self._open.values())
        self._open.clear()
        self._aborted_at.clear()
        for stream in streams:
            stream.fail(error)

    def submit(self, add: Add) -> OutputStream:
        """Raises the error given to `close`, InvalidRequest if the id is in use, PoisonRequest."""
        if self._closed is not None:
            raise self._closed.with_traceback(None)
        if add.id in self._open:
            raise InvalidRequest(f"a request with the id «{add.id}» is still running")
        digest = self._poison.check(add.prompt_ids)
        stream = self._open[add.id] = OutputStream(add, lambda: self.abort(add.id), digest)
        if self._send is not None:
            self._send(add)
        return stream

    def abort(self, id: str) -> None:
        """Idempotent; an id that has ended is ignored."""
        if id not in self._open or id in self._aborted_at:
            return
        if self._send is None:
            self._open.pop(id).put(Output(id, finish_reason="abort"))
        else:
            self._aborted_at[id] = time.monotonic()
            self._send(Abort(id))

    def begin(self, ids: Iterable[str]) -> None:
        """The engine has reported that it computes these."""
        for id in ids:
            if id in self._open:
                self._open[id].has_begun = True

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
