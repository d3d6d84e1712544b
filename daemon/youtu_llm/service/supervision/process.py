"""One engine process: the child, the socketpair that carries frames, and its log."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from youtu_llm.protocol import FrameReader, FromEngine, ToEngine, encode, from_engine_decoder
from youtu_llm.service.supervision.silence import SilenceLimit

LOG_LINES = 20
LOG_LINE_CHARS = 500
OOM_SCORE_ADJ = 500  # of 1000


class EngineProcess(asyncio.Protocol):
    """`on_message` is called for each message. `gone` resolves when the socket is closed.

    Each process holds one end of a socketpair, so when either exits the other reads EOF.
    """

    def __init__(self, on_message: Callable[[FromEngine], None]) -> None:
        self._on_message = on_message
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._killed_because = ""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.silence = SilenceLimit()

    async def start(self, command: Sequence[str]) -> None:
        """Execute `command --fd N`. Raises OSError if that fails."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    "--fd",
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,  # only the service handles Ctrl-C
                )
            except BaseException:
                ours.close()
                raise
        loop = asyncio.get_running_loop()
        self._log_task = loop.create_task(self._forward_log())
        _prefer_as_oom_victim(self._process.pid)
        await loop.create_unix_connection(lambda: self, sock=ours)

    def send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def kill(self, reason: str) -> None:
        """SIGKILL; `close` then returns the first `reason` given."""
        self._killed_because = self._killed_because or reason
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self, *, grace_s: float) -> str:
        """Wait for the process to exit, kill it after `grace_s`; return why it exited."""
        if self._transport is not None:
            self._transport.close()  # the engine reads EOF and exits
        if self._process is None:
            return self._killed_because
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except asyncio.TimeoutError:
            self.kill(f"it did not exit within {grace_s:g} s")
        status = await self._process.wait()
        if self._log_task is not None:
            with contextlib.suppress(asyncio.TimeoutError):  # a grandchild may hold the pipe open
                await asyncio.wait_for(self._log_task, 1.0)
        return self._killed_because or _describe_exit(status)

    async def _forward_log(self) -> None:
        """Copy the engine's output to our stderr and keep its last lines."""
        assert self._process is not None
        assert self._process.stdout is not None
        pending = b""
        while chunk := await self._process.stdout.read(8192):
            with contextlib.suppress(OSError):  # the journal's disk may be full
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
            *lines, pending = (pending + chunk).split(b"\n")
            pending = pending[-LOG_LINE_CHARS:]
            self.log.extend(line.decode(errors="replace")[:LOG_LINE_CHARS] for line in lines)
        if pending:
            self.log.append(pending.decode(errors="replace"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        try:
            messages = [from_engine_decoder.decode(frame) for frame in self._frames.feed(data)]
        except (ValueError, msgspec.DecodeError) as error:
            self.kill(f"it sent a malformed message ({error})")
            assert self._transport is not None
            self._transport.abort()
            return
        for message in messages:
            self.silence.heard(message, now)
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


def _prefer_as_oom_victim(pid: int) -> None:
    """Out of memory, the kernel should kill the engine, not the service."""
    with contextlib.suppress(OSError):  # not writable in every container
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def _describe_exit(status: int) -> str:
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it exited with status {status}"
