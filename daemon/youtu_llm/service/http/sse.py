"""Server-sent events with keep-alives and a write deadline."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import web
from pydantic_core import to_json

KEEP_ALIVE_S = 15.0
WRITE_DEADLINE_S = 15.0


class EventStream:
    """`named`: events have an `event: NAME` line (our API); else only data (OpenAI's)."""

    def __init__(self, request: web.Request, *, named: bool) -> None:
        self._request = request
        self._named = named
        self._keep_alive: asyncio.Task[None] | None = None
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )

    async def open(self) -> None:
        await self.response.prepare(self._request)
        self._keep_alive = asyncio.get_running_loop().create_task(self._stay_alive())

    async def send(self, event: str, data: Any) -> None:
        """Raises ConnectionError if the client disconnected or stopped reading."""
        head = b"event: " + event.encode() + b"\n" if self._named else b""
        await self.send_raw(head + b"data: " + to_json(data) + b"\n\n")

    async def close(self) -> None:
        self.quiet()
        await self.response.write_eof()

    def quiet(self) -> None:
        """Stop the keep-alives. Idempotent."""
        if self._keep_alive is not None:
            self._keep_alive.cancel()

    async def send_raw(self, data: bytes) -> None:
        try:
            await asyncio.wait_for(self.response.write(data), WRITE_DEADLINE_S)
        except asyncio.TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None

    async def _stay_alive(self) -> None:
        with contextlib.suppress(ConnectionError):  # the handler's own write raises it
            while True:
                await asyncio.sleep(KEEP_ALIVE_S)
                await self.send_raw(b":\n\n")
