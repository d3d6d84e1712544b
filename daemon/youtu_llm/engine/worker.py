"""The engine process: `python -m youtu_llm.engine.worker --fd N`.

N is one end of a socket pair whose other end the service holds. The process loads when it is
told to, then steps; between steps it drains messages. It ends with the service: at end of file
on its descriptor, or by the parent-death signal.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import logging
import select
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import torch

from youtu_llm import manifest, protocol
from youtu_llm.engine import backend as backends
from youtu_llm.engine import faults, loader, memory
from youtu_llm.engine.core import Core
from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.engine.models import registry, rope
from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.protocol import (
    Abort,
    Add,
    Configure,
    EngineConfig,
    Fatal,
    FromEngine,
    Heartbeat,
    Hello,
    MemoryStats,
    Output,
    Phase,
    Pin,
    Shutdown,
    Step,
)

log = logging.getLogger("youtu.engine")

IDLE_HEARTBEAT_S = 1.0
STEP_HEARTBEAT_S = 0.2


class Disconnected(Exception):
    """The service is gone; so must we."""


class Link:
    """Frames over the inherited socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = protocol.FrameReader()
        self._poll = select.poll()  # the number of an inherited descriptor may exceed select's
        self._poll.register(self.socket, select.POLLIN)
        self.unread: list[protocol.ToEngine] = []  # received, but left for the next `receive`

    def send(self, message: FromEngine) -> None:
        try:
            self.socket.sendall(protocol.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise Disconnected from None

    def receive(self, timeout_s: float) -> list[protocol.ToEngine]:
        """What has arrived; waits up to `timeout_s` for the first byte."""
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
        self._link = link
        self._core: Core | None = None
        self._last_heartbeat_s = 0.0

    def run(self) -> None:
        config = self._wait_for_config()
        core = self._load(config)
        faults.install(core, self._link.socket)
        while True:
            timeout_s = 0.0 if core.has_work else IDLE_HEARTBEAT_S
            outputs: list[Output] = []
            for message in self._link.receive(timeout_s):
                if isinstance(message, Shutdown):
                    return
                outputs += self._handle(core, message)
            self._send(outputs)  # an abort is confirmed before the next step, not after it
            if core.has_work:
                self._send(self._step(core))
            else:
                core.idle()
                self._heartbeat("idle", min_gap_s=IDLE_HEARTBEAT_S / 2)

    def _step(self, core: Core) -> list[Output]:
        plan = core.plan_step()
        # Always announced when it may take long, or is a request's first.
        prefilling = tuple(seq.id for seq in plan.chunks if not seq.num_generated)
        is_short = plan.num_tokens == 1 and not prefilling
        min_gap_s = STEP_HEARTBEAT_S if is_short else 0
        self._heartbeat("step", plan.num_tokens, prefilling, min_gap_s=min_gap_s)
        return core.run_step(plan)

    def _send(self, outputs: list[Output]) -> None:
        if outputs:
            self._link.send(Step(tuple(outputs)))

    def _wait_for_config(self) -> EngineConfig:
        while True:
            messages = self._link.receive(60.0)
            for i, message in enumerate(messages):
                if isinstance(message, Shutdown):
                    raise Disconnected
                if not isinstance(message, Configure):
                    raise ModelError(f"the first message must be Configure, got {message!r}")
                if message.protocol_version != protocol.PROTOCOL_VERSION:
                    raise ModelError(
                        f"the daemon speaks protocol {message.protocol_version}, this engine "
                        f"{protocol.PROTOCOL_VERSION}: install the same version of both"
                    )
                self._link.unread = messages[i + 1 :]
                return message.config

    def _load(self, config: EngineConfig) -> Core:
        check = manifest.Check(Path(config.model_dir))
        try:
            core, hello = self._build(config, check.digest)
        finally:
            # Of a damaged file it says more than who tripped over it.
            check.finish(lambda: self._heartbeat("loading", progress=1.0))
        self._link.send(hello)
        return core

    def _build(self, config: EngineConfig, digest: str) -> tuple[Core, Hello]:
        started = time.monotonic()
        self._heartbeat("loading")
        checkpoint = loader.Checkpoint(Path(config.model_dir))
        kind = registry.find(checkpoint.config)
        plan_rope = functools.partial(
            rope.plan, checkpoint.config, kind.extension, long_context=config.long_context
        )
        rope_plan = plan_rope(max_tokens=config.max_context_tokens)
        backend = backends.choose(config)
        ops, spec = backend.ops, kind.cache_spec(checkpoint.config)
        vocab_size = checkpoint.config.int("vocab_size")
        if ops.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(config.memory_fraction, ops.device)
        plan = memory.plan(
            config,
            checkpoint,
            spec,
            rope_plan,
            activation_width=kind.activation_width(checkpoint.config),
            rope_dim=kind.rope_dim(checkpoint.config),
            vocab_size=vocab_size,
            dtype=ops.dtype,
            cache_dtype=backend.cache_dtype,
            device=ops.device,
        )
        if plan.max_model_len < rope_plan.max_positions:
            # The pages hold less than the model reaches: stretch no further than they do.
            rope_plan = plan_rope(max_tokens=plan.max_model_len)
        for line in str(plan).splitlines():
            log.info("plan: %s", line)
        for note in (*rope_plan.notes, *rope_plan.warnings, *backend.degraded):
            log.info("%s", note)
        model = loader.load(
            checkpoint, ops, rope_plan, lambda share: self._heartbeat("loading", progress=share)
        )
        cache = KVCache(spec, backend.cache_dtype, ops.device, plan.num_pages)
        eos = checkpoint.eos_token_ids()
        core = Core(model, cache, config, plan, vocab_size=vocab_size, eos_token_ids=eos)
        self._core = core
        core.pin(config.pinned_prefix_ids)
        while core.has_work:
            self._step(core)
        return core, Hello(
            architecture=checkpoint.config.architecture,
            backend=ops.name,
            device=str(ops.device),
            max_model_len=plan.max_model_len,
            window_tokens=plan.window_pages * protocol.PAGE_SIZE,
            vocab_size=vocab_size,
            eos_token_ids=eos,
            load_s=time.monotonic() - started,
            pages=core.page_stats(),
            memory=self._memory(core),
            degraded=(*rope_plan.warnings, *backend.degraded),
            plan=str(plan),
            model_digest=digest,
        )

    def _handle(self, core: Core, message: protocol.ToEngine) -> list[Output]:
        output: Output | None = None
        if isinstance(message, Add):
            output = core.add(message.id, message.prompt_ids, message.params, message.priority)
        elif isinstance(message, Abort):
            output = core.abort(message.id)
        elif isinstance(message, Configure):
            raise ValueError("this engine is configured; another configuration needs another one")
        elif isinstance(message, Pin):
            core.pin(message.prompt_ids)
        return [output] if output else []

    def _heartbeat(
        self,
        phase: Phase,
        step_tokens: int = 0,
        prefilling: tuple[str, ...] = (),
        *,
        progress: float = 0.0,
        min_gap_s: float = STEP_HEARTBEAT_S,
    ) -> None:
        now = time.monotonic()
        if now - self._last_heartbeat_s < min_gap_s:
            return
        self._last_heartbeat_s = now
        core = self._core
        if core is None:
            self._link.send(Heartbeat(phase, progress=progress))
            return
        scheduler = core.scheduler
        self._link.send(
            Heartbeat(
                phase,
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                step_tokens=step_tokens,
                prefilling=prefilling,
                pages=core.page_stats(),
                memory=self._memory(core),
                progress=progress,
            )
        )

    def _memory(self, core: Core) -> MemoryStats:
        if core.cache.device.type == "cuda":
            used = torch.cuda.memory_reserved(core.cache.device)
        else:
            used = psutil.Process().memory_info().rss
        plan = core.plan
        return MemoryStats(plan.weights, core.cache.num_bytes, plan.workspace, used, plan.total)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="youtu-engine", description="Run by `youtu serve`.")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    fd = parser.parse_args(arguments).fd
    faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s engine: %(message)s"
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service; it tells us
    link = Link(socket.socket(fileno=fd))
    try:
        Worker(link).run()
    except Disconnected:
        return 0
    except (ModelError, ResourceError) as error:
        return _fatal(link, error.code, error.message, heals=False)
    except Exception as error:
        # A CUDA error poisons the context for good: only a new process recovers.
        log.exception("the engine ends")
        return _fatal(link, "engine_error", f"{type(error).__name__}: {error}", heals=True)
    return 0


def _fatal(link: Link, code: str, message: str, *, heals: bool) -> int:
    log.error("%s", message)
    try:
        link.send(Fatal(code, message, heals))
    except Disconnected:
        log.error("the daemon is gone")
    return 1


if __name__ == "__main__":
    sys.exit(main())
