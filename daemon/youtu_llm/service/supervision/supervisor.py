"""Keeps one engine alive: exec, handshake, deadlines, rate-limited restarts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from youtu_llm.errors import EngineFault, EngineUnavailable
from youtu_llm.protocol import (
    PROTOCOL_VERSION,
    Configure,
    EngineConfig,
    Fatal,
    FromEngine,
    Heartbeat,
    Hello,
    Pin,
    Shutdown,
    Step,
)
from youtu_llm.service.status import Crash, State, Status
from youtu_llm.service.supervision.client import EngineClient
from youtu_llm.service.supervision.process import EngineProcess
from youtu_llm.settings import ServiceSection

logger = logging.getLogger(__name__)

FIRST_RESTART_DELAY_S = 0.2  # doubles with each restart in the window ...
LONGEST_RESTART_DELAY_S = 1.0  # ... up to this: the rate limits restarts, not the delay
MAX_OVERSLEEP_S = 1.0  # if the watchdog task overslept more, the machine was suspended
NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EPERM)
CLOSE_GRACE_S = 3.0
CRASH_GRACE_S = 0.5  # an engine whose socket is closed is already exiting


class RestartWindow:
    """At most `num` restarts in any `seconds`, on the monotonic clock."""

    def __init__(self, rate: str) -> None:
        num, seconds = rate.split("/")
        self.num, self.seconds = int(num), float(seconds)
        self._restarts: deque[float] = deque()

    def delay_s(self, now: float) -> float | None:
        """Count a restart; return the delay before it, None if the rate is exhausted."""
        while self._restarts and now - self._restarts[0] > self.seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self.num:
            return None
        doublings = min(len(self._restarts), 8)
        self._restarts.append(now)
        return min(FIRST_RESTART_DELAY_S * (1 << doublings), LONGEST_RESTART_DELAY_S)


@dataclass(frozen=True)
class _Ending:
    reason: str
    heals: bool = True  # False: a restart would fail the same way


class Supervisor:
    def __init__(self, command: Sequence[str], status: Status, client: EngineClient) -> None:
        self._command = tuple(command)
        self._status = status
        self._client = client
        self._config = EngineConfig("")
        self._limits = ServiceSection()
        self._engine: EngineProcess | None = None
        self._fatal: _Ending | None = None
        self._task: asyncio.Task[None] | None = None
        self._first_load: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def start(
        self, config: EngineConfig, limits: ServiceSection, *, trial: bool = False
    ) -> asyncio.Future[str | None]:
        """Keep an engine for `config` alive until `close`. The future resolves to None when the
        first engine is ready, or to the reason why there will be none. A `trial` gives up if its
        first engine fails to load, and leaves the state to the caller."""
        loop = asyncio.get_running_loop()
        self._config, self._limits = config, limits
        self._first_load = loop.create_future()
        self._task = loop.create_task(self._run(trial=trial), name="supervisor")
        return self._first_load

    def adopt(self, config: EngineConfig, limits: ServiceSection) -> None:
        """Switch to `config` without a restart; only its system prompt may differ."""
        if config.pinned_prefix_ids != self._config.pinned_prefix_ids and self._engine is not None:
            self._engine.send(Pin(config.pinned_prefix_ids))
        self._config, self._limits = config, limits

    async def close(self) -> None:
        """Stop the engine and wait for its process to exit."""
        if self._task is not None:
            self._task.cancel()
            self._client.close(
                EngineUnavailable("the engine was stopped", code="engine_restarting")
            )
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self, *, trial: bool) -> None:
        window = RestartWindow(self._limits.max_restart_rate)
        try:
            while True:
                self._status.change(State.LOADING)
                ending = await self._run_engine()
                if self._status.state is State.DRAINING:  # the caller is stopping this engine
                    return self._client.close(self._status.unavailable())
                if trial and not self._first_load.done():
                    return self._settle(ending.reason)
                if not ending.heals:
                    return self._give_up(ending.reason)
                if not self._limits.restart_on_failure:
                    return self._give_up(
                        f"the engine stopped: {ending.reason}. service.restart_on_failure is off:"
                        " restart the service"
                    )
                delay_s = window.delay_s(time.monotonic())
                if delay_s is None:
                    return self._give_up(
                        f"the engine stopped again ({ending.reason}) after {window.num} restarts"
                        f" in {window.seconds:g} s: see the journal, then restart the service"
                    )
                self._status.restarts += 1
                self._status.change(
                    State.RESTARTING, f"the engine stopped: {ending.reason}; restarting it"
                )
                await asyncio.sleep(delay_s)
        except Exception as error:
            # A bug here must show as «failed», not as a service that waits for an engine.
            logger.exception("the supervisor failed")
            self._give_up(f"internal error of the supervisor ({type(error).__name__})")

    def _settle(self, reason: str | None) -> None:
        if not self._first_load.done():
            self._first_load.set_result(reason)

    def _give_up(self, reason: str) -> None:
        self._status.change(State.FAILED, reason)
        self._client.close(self._status.unavailable())
        self._settle(reason)

    async def _run_engine(self) -> _Ending:
        """One engine from exec to exit. Never raises for a failure of the engine."""
        self._fatal = None
        engine = self._engine = EngineProcess(self._on_message)
        watch = asyncio.get_running_loop().create_task(self._watch(engine))
        grace_s = CLOSE_GRACE_S
        try:
            await engine.start(self._command)
            engine.send(Configure(self._config))
            await engine.gone
            grace_s = CRASH_GRACE_S
            if self._status.state is State.READY:  # refuse requests while the process exits
                self._status.change(State.RESTARTING)
        except OSError as error:
            if error.errno not in NO_PROGRAM:  # out of memory, processes or descriptors
                return _Ending(f"cannot start the engine ({error.strerror})")
            return _Ending(
                f"cannot start the engine's Python ({error.strerror}): set engine.python, or let"
                " `sudo youtu setup-engine` do it",
                heals=False,
            )
        finally:
            watch.cancel()
            self._client.detach(
                EngineFault("the engine stopped while it was processing this request")
            )
            engine.send(Shutdown())
            reason = await engine.close(grace_s=grace_s)
            self._engine = None
        ending = self._fatal or _Ending(reason)
        self._status.last_crash = Crash(ending.reason, time.time(), tuple(engine.log))
        return ending

    async def _watch(self, engine: EngineProcess) -> None:
        """Kill an engine that misses its load or heartbeat deadline."""
        started_at = time.monotonic()
        while True:
            silence_s = engine.silence.limit_s(self._limits.engine_silence_s)
            deadline = engine.silence.heard_at + silence_s
            late = f"it was silent for {silence_s:g} s"
            if self._client.hello is None:
                load_deadline = started_at + self._limits.load_timeout_s
                # Before its first message it may be importing torch from a slow disk.
                if engine.silence.num_messages == 0 or load_deadline < deadline:
                    deadline = load_deadline
                    late = f"it took longer than {self._limits.load_timeout_s:g} s to load"
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return engine.kill(late)
            # The deadline may move nearer when the phase changes, so wake up often.
            wake_at = time.monotonic() + min(remaining_s, self._limits.engine_silence_s)
            await asyncio.sleep(wake_at - time.monotonic())
            if time.monotonic() - wake_at > MAX_OVERSLEEP_S:
                engine.silence.heard_at = time.monotonic()

    def _on_message(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._client.deliver(message)
            case Heartbeat():
                self._status.heard(message)
                self._client.begin(message.prefilling)
            case Hello():
                self._welcome(message)
            case Fatal():
                # Remote clients see this message: do not reveal directories.
                reason = message.message.replace(
                    self._config.model_dir, Path(self._config.model_dir).name
                )
                self._fatal = _Ending(reason, heals=message.heals)

    def _welcome(self, hello: Hello) -> None:
        assert self._engine is not None
        if hello.protocol_version != PROTOCOL_VERSION:
            self._fatal = _Ending(
                f"the engine speaks protocol {hello.protocol_version}, the service"
                f" {PROTOCOL_VERSION}: install both from the same release",
                heals=False,
            )
            self._engine.kill("protocol version mismatch")
            return
        logger.info(
            "Model loaded in %.1f s | memory: %.2f / %.2f GB",
            hello.load_s,
            hello.memory.used / 1e9,
            hello.memory.total / 1e9,
        )
        logger.info(
            "%s on %s | %d cache pages, limited by %s | context %d tokens",
            hello.architecture,
            hello.backend,
            hello.pages.limit,
            hello.pages.limit_by or "nothing",
            hello.max_model_len,
        )
        self._status.hello = hello
        self._client.attach(self._engine.send, hello)
        self._status.change(State.READY)
        self._settle(None)
