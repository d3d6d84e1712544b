"""The engine process: started by `python -m youtu_llm.engine --fd N`.

N is one end of a socket pair; the service holds the other. The process loads the model on
Configure, then steps, and drains messages between steps. It exits with the service: at end of
file on its descriptor, or by the parent-death signal.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from youtu_llm import manifest, protocol
from youtu_llm.engine.build import build
from youtu_llm.engine.core import Core
from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.protocol import (
    Abort,
    Add,
    Configure,
    EngineConfig,
    Fatal,
    FromEngine,
    Heartbeat,
    Output,
    Pin,
    Shutdown,
    Step,
)

log = logging.getLogger("youtu.engine")

IDLE_HEARTBEAT_S = 1.0
STEP_HEARTBEAT_S = 0.2


class Disconnected(Exception):
    """The service closed its end of the socket."""


class Link:
    """Frames over the inherited socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = protocol.FrameReader()
        self._poll = select.poll()  # the number of an inherited descriptor may exceed select's
        self._poll.register(self.socket, select.POLLIN)
        self.unread: list[protocol.ToEngine] = []  # received, for the next `receive`

    def send(self, message: FromEngine) -> None:
        try:
            self.socket.sendall(protocol.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise Disconnected from None

    def receive(self, timeout_s: float) -> list[protocol.ToEngine]:
        """The messages that have arrived; waits up to `timeout_s` for the first byte."""
        if self.unread:
            messages, self.unread = self.unread, []
            return messages
        if not self._poll.poll(timeout_s * 1e3):
            return []
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Disconnected
        return [protocol.to_engine_decoder.decode(body) for body in self._reader.feed(data)]


class Worker:
    def __init__(self, link: Link) -> None:
        self.link = link
        self._last_heartbeat_s = 0.0

    def run(self) -> None:
        config = self._wait_for_config()
        core = self.load(config)
        while True:
            timeout_s = 0.0 if core.has_work else IDLE_HEARTBEAT_S
            outputs: list[Output] = []
            for message in self.link.receive(timeout_s):
                if isinstance(message, Shutdown):
                    return
                outputs += self._handle(core, message)
            self._send(outputs)  # an abort is confirmed before the next step, not after it
            if core.has_work:
                self._send(self._step(core))
            else:
                core.idle()
                if self._is_due(IDLE_HEARTBEAT_S / 2):
                    self._beat(core.heartbeat("idle"))

    def _step(self, core: Core) -> list[Output]:
        plan = core.plan_step()
        # A heartbeat precedes every step that may be long or a request's first; else only some.
        is_short = plan.num_tokens == len(plan.chunks) and not plan.prefilling
        if not is_short or self._is_due(STEP_HEARTBEAT_S):
            self._beat(core.heartbeat("step", plan))
        return core.run_step(plan)

    def _send(self, outputs: list[Output]) -> None:
        if outputs:
            self.link.send(Step(tuple(outputs)))

    def _wait_for_config(self) -> EngineConfig:
        while True:
            messages = self.link.receive(60.0)
            for i, message in enumerate(messages):
                if isinstance(message, Shutdown):
                    raise Disconnected
                if not isinstance(message, Configure):
                    raise ModelError(f"the first message must be Configure, got {message!r}")
                if message.protocol_version != protocol.PROTOCOL_VERSION:
                    raise ModelError(
                        f"protocol mismatch: daemon {message.protocol_version}, engine "
                        f"{protocol.PROTOCOL_VERSION}: install the same version of both"
                    )
                self.link.unread = messages[i + 1 :]
                return message.config

    def load(self, config: EngineConfig) -> Core:
        check = manifest.Check(Path(config.model_dir))
        try:
            core, hello = build(config, on_progress=self._report_progress)
        finally:
            # A damaged file's digest explains more than the error that loading it raised.
            check.finish(lambda: self._report_progress(Heartbeat("loading", progress=1.0)))
        self.link.send(msgspec.structs.replace(hello, model_digest=check.digest))
        return core

    def _report_progress(self, heartbeat: Heartbeat) -> None:
        if heartbeat.step_tokens or self._is_due(STEP_HEARTBEAT_S):
            self._beat(heartbeat)

    def _handle(self, core: Core, message: protocol.ToEngine) -> list[Output]:
        output: Output | None = None
        if isinstance(message, Add):
            output = core.add(message.id, message.prompt_ids, message.params, message.priority)
        elif isinstance(message, Abort):
            output = core.abort(message.id)
        elif isinstance(message, Configure):
            raise ValueError("this engine is configured already: start another process")
        elif isinstance(message, Pin):
            core.pin(message.prompt_ids)
        return [output] if output else []

    def _is_due(self, gap_s: float) -> bool:
        return time.monotonic() - self._last_heartbeat_s >= gap_s

    def _beat(self, heartbeat: Heartbeat) -> None:
        self._last_heartbeat_s = time.monotonic()
        self.link.send(heartbeat)


def main(
    arguments: list[str] | None = None, *, make_worker: Callable[[Link], Worker] = Worker
) -> int:
    parser = argparse.ArgumentParser(prog="youtu-engine", description="Run by `youtu serve`.")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    fd = parser.parse_args(arguments).fd
    faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s engine: %(message)s"
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which sends Shutdown
    link = Link(socket.socket(fileno=fd))
    try:
        make_worker(link).run()
    except Disconnected:
        return 0
    except (ModelError, ResourceError) as error:
        return _fatal(link, error.code, error.message, heals=False)
    except Exception as error:
        # A CUDA error leaves the context unusable: only a new process recovers.
        log.exception("the engine stops on an error")
        return _fatal(link, "engine_error", f"{type(error).__name__}: {error}", heals=True)
    return 0


def _fatal(link: Link, code: str, message: str, *, heals: bool) -> int:
    log.error("%s", message)
    try:
        link.send(Fatal(code, message, heals))
    except Disconnected:
        log.error("the service has disconnected")
    return 1
