"""A deadline for request heads: aiohttp itself waits without limit for a slow client."""

from __future__ import annotations

import asyncio

from aiohttp import web

HEAD_DEADLINE_S = 10.0


class HeadDeadline(asyncio.Protocol):
    """Forwards everything to aiohttp's protocol `inner`, and aborts a connection whose request
    head is late: counted from the connect, or from the first byte after a response.
    aiohttp closes connections that stay idle after a response (keepalive_timeout)."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._is_busy = False  # between a complete head and its response

    @staticmethod
    def of(request: web.Request) -> HeadDeadline | None:
        """That of the request's connection, None if it is closed."""
        protocol = request.transport.get_protocol() if request.transport is not None else None
        return protocol if isinstance(protocol, HeadDeadline) else None

    def head_is_read(self) -> None:
        self._is_busy = True
        self._stop()

    def is_answered(self) -> None:
        self._is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._start()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._is_busy and self._deadline is None:
            self._start()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _start(self) -> None:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HEAD_DEADLINE_S, self._transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
