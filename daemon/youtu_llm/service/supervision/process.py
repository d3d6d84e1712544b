"""One live engine: a child process, an inherited socket that carries frames, and its log."""

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
    """`on_message` is called for each message. `gone` resolves when the link is down.

    The child owns the other end of a socketpair, so the death of either side is an end of
    file for the other.
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
        """Executes `command --fd N`. Raises OSError if it cannot be executed."""
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
                    start_new_session=True,  # a Ctrl-C at the terminal is the service's to handle
                )
            except BaseException:
                ours.close()
                raise
        loop = asyncio.get_running_loop()
        self._log_task = loop.create_task(self._pass_log_on())
        _prefer_as_oom_victim(self._process.pid)
        await loop.create_unix_connection(lambda: self, sock=ours)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def kill(self, reason: str) -> None:
        """SIGKILL. `reason` then stands for the ending in `close`'s answer."""
        self._killed_because = self._killed_because or reason
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self, *, grace_s: float) -> str:
        """Waits for the end of the process, kills it after `grace_s`, and says how it ended."""
        if self._transport is not None:
            self._transport.close()  # for the engine an end of file: it ends by itself
        if self._process is None:
            return self._killed_because
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except asyncio.TimeoutError:
            self.kill(f"it did not end within {grace_s:g} s")
        status = await self._process.wait()
        if self._log_task is not None:
            with contextlib.suppress(asyncio.TimeoutError):  # a grandchild may hold the pipe
                await asyncio.wait_for(self._log_task, 1.0)
        return self._killed_because or _describe_exit(status)

    async def _pass_log_on(self) -> None:
        """What the engine prints goes to our stderr, and its last lines are kept."""
        assert self._process is not None
        assert self._process.stdout is not None
        pending = b""
        while chunk := await self._process.stdout.read(8192):
            with contextlib.suppress(OSError):  # a full disk: the last lines are kept below
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
    """Short of memory, the kernel should take the engine and not the service."""
    with contextlib.suppress(OSError):  # not every container lets us write it
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def _describe_exit(status: int) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it exited with status {status}"
