"""Notifications to systemd (sd_notify(3)); no-ops without NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import logging
import os

import sdnotify

from youtu_llm.service.status import State, Status

logger = logging.getLogger(__name__)

LOADING_EXTENSION_S = 30


class Notifier:
    """Sends READY=1 once, when the model has loaded or failed: a 503 then gives the reason."""

    def __init__(self) -> None:
        # Without `debug` sdnotify hides every error.
        has_systemd = bool(os.environ.get("NOTIFY_SOCKET"))
        self._channel = sdnotify.SystemdNotifier(debug=True) if has_systemd else None
        self._watchdog_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        self._is_ready = False
        self._extends_timeout = False  # while the first load or the shutdown may take long

    def notify(self, *lines: str) -> None:
        if self._channel is not None:
            # sdnotify encodes as Latin-1, systemd expects UTF-8: decode so that the bytes match.
            try:
                self._channel.notify("\n".join(lines).encode().decode("latin-1"))
            except OSError as error:  # not fatal: the next one may succeed
                logger.warning("cannot notify systemd (%s)", error.strerror)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.socket.close()

    def follow(self, status: Status) -> None:
        """Report a change of state (a listener of Status)."""
        is_loading = status.state in (State.STARTING, State.LOADING, State.RESTARTING)
        self._extends_timeout = status.is_closing or (is_loading and not self._is_ready)
        lines = [f"STATUS={status}"]
        if status.is_closing:
            lines.append("STOPPING=1")
        elif status.state in (State.READY, State.FAILED) and not self._is_ready:
            self._is_ready = True
            lines.append("READY=1")
        self.notify(*lines)

    async def beat(self) -> None:
        """Feed the watchdog from the service's event loop, independent of the engine."""
        interval_s = min(self._watchdog_s or LOADING_EXTENSION_S, LOADING_EXTENSION_S) / 3
        while self._channel is not None:
            lines = ["WATCHDOG=1"] if self._watchdog_s else []
            if self._extends_timeout:
                lines.append(f"EXTEND_TIMEOUT_USEC={LOADING_EXTENSION_S * 1_000_000}")
            if lines:
                self.notify(*lines)
            await asyncio.sleep(interval_s)
