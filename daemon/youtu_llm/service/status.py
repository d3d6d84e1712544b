"""The state of the daemon and its reason, shared by the log, /health, /metrics and systemd."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from youtu_llm.errors import EngineUnavailable
from youtu_llm.protocol import Heartbeat, Hello, MemoryStats, PageStats


class State(str, Enum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    FAILED = "failed"


# state -> (error code of the 503, Retry-After in seconds before the first measured load)
_REFUSALS = {
    State.STARTING: ("loading", 2),
    State.LOADING: ("loading", 2),
    State.DRAINING: ("engine_restarting", 10),
    State.RESTARTING: ("engine_restarting", 2),
    State.FAILED: ("failed", 60),
}
_DEFAULT_REASONS = {
    State.STARTING: "the daemon is starting",
    State.LOADING: "the model is being loaded",
    State.READY: "",
    State.DRAINING: "the daemon is shutting down",
    State.RESTARTING: "the engine is being restarted",
    State.FAILED: "the engine failed",
}


@dataclass(frozen=True)
class Crash:
    """Why an engine stopped, and the last lines of its log."""

    reason: str
    unix_time: float
    log: tuple[str, ...]


class Status:
    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason = _DEFAULT_REASONS[State.STARTING]
        self.hello: Hello | None = None
        self.restarts = 0
        self.last_crash: Crash | None = None
        self.is_closing = False
        self._notes: dict[str, str] = {}
        self._heartbeat: Heartbeat | None = None
        self._heard_at = 0.0  # monotonic
        self._changed_at = time.monotonic()
        self._load_s = 0.0  # of the last load; 0: none yet
        self._listeners: list[Callable[[Status], None]] = []

    def listen(self, listener: Callable[[Status], None]) -> None:
        """Call `listener` now and after every change of state."""
        self._listeners.append(listener)
        listener(self)

    def change(self, state: State, reason: str = "", *, is_last: bool = False) -> None:
        if self.is_closing:
            return  # the engine's exit does not change the final state
        if state is not State.READY and state is not State.DRAINING:
            self.hello = None
            self._heartbeat = None
        if state is State.READY and self.hello is not None:
            self._load_s = self.hello.load_s
        self._changed_at = time.monotonic()
        self.is_closing = is_last
        self.state = state
        self.reason = reason or _DEFAULT_REASONS[state]
        for listener in self._listeners:
            listener(self)

    def close(self) -> None:
        """The daemon drains and exits; later changes are ignored."""
        self.change(State.DRAINING, is_last=True)

    def note(self, topic: str, text: str) -> None:
        """Set the entry of `topic` in /health's `degraded`; "" clears it."""
        self._notes.pop(topic, None)
        if text:
            self._notes[topic] = text

    @property
    def degraded(self) -> list[str]:
        return [*(self.hello.degraded if self.hello else ()), *self._notes.values()]

    def heard(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._heard_at = time.monotonic()

    def require_ready(self) -> Hello:
        """The running engine's Hello. Raises EngineUnavailable with the reason if there is none."""
        if self.state is State.READY and self.hello is not None:
            return self.hello
        raise self.unavailable()

    def unavailable(self) -> EngineUnavailable:
        code, retry_after_s = _REFUSALS[self.state]
        if self.state is State.DRAINING and self.is_closing:
            code = "draining"
        elif self.state is not State.FAILED and self._load_s:
            elapsed_s = time.monotonic() - self._changed_at
            retry_after_s = max(1, math.ceil(self._load_s - elapsed_s))
        return EngineUnavailable(self.reason, code=code, retry_after_s=retry_after_s)

    @property
    def num_running(self) -> int:
        return self._heartbeat.running if self._heartbeat else 0

    @property
    def pages(self) -> PageStats:
        """From the last heartbeat; before the first, from the Hello."""
        if self._heartbeat and self._heartbeat.pages.limit:
            return self._heartbeat.pages
        return self.hello.pages if self.hello else PageStats()

    @property
    def memory(self) -> MemoryStats:
        if self._heartbeat and self._heartbeat.memory.total:
            return self._heartbeat.memory
        return self.hello.memory if self.hello else MemoryStats()

    def __str__(self) -> str:
        """One line for the log and systemd's STATUS=."""
        return f"{self.state.value}: {self.reason}" if self.reason else self.state.value

    def report(self, *, with_log: bool) -> dict[str, Any]:
        """The engine's part of /health; `with_log` adds the crashed engine's last lines."""
        heartbeat, hello = self._heartbeat, self.hello
        engine: dict[str, Any] = {
            "phase": heartbeat.phase if heartbeat else "starting",
            "last_step_age_s": round(time.monotonic() - self._heard_at, 3) if heartbeat else None,
            "restarts": self.restarts,
        }
        if heartbeat and heartbeat.phase == "loading":
            engine["progress"] = round(heartbeat.progress, 3)
        if self.last_crash is not None:
            crash = {"reason": self.last_crash.reason, "unix_time": self.last_crash.unix_time}
            engine["last_crash"] = crash | ({"log": self.last_crash.log} if with_log else {})
        return {
            "state": self.state.value,
            **({"reason": self.reason} if self.reason else {}),
            "backend": hello.backend if hello else None,
            "device": hello.device if hello else None,
            "architecture": hello.architecture if hello else None,
            "max_model_len": hello.max_model_len if hello else None,
            "engine": engine,
            "pages": msgspec.to_builtins(self.pages),
            "memory": msgspec.to_builtins(self.memory),
            "degraded": self.degraded,
        }
