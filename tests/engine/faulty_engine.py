"""The real engine with faults on demand, started by the tests as `engine_command`.

A request whose id is `fault:KIND:K` runs into that fault at its token K:

    crash    SIGKILL              hang     silent for good      oom      this request fails
    exit     status 3, last words garbage  a malformed frame    fatal    a Fatal that may heal
    slow     each step from there on takes SLOW_S longer
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time

import torch

from youtu_llm import protocol
from youtu_llm.engine import worker
from youtu_llm.engine.core import Core
from youtu_llm.engine.runner import Runner
from youtu_llm.engine.scheduler import Plan
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import EngineConfig

SLOW_S = 0.2
_ID = re.compile(r"fault:(\w+):(\d+)")


class FaultyWorker(worker.Worker):
    def load(self, config: EngineConfig) -> Core:
        core = super().load(config)
        core.runner = _FaultyRunner(core.runner, self.link.socket)
        return core


class _FaultyRunner(Runner):
    def __init__(self, runner: Runner, link: socket.socket) -> None:
        vars(self).update(vars(runner))
        self._link = link

    def run(self, plan: Plan) -> dict[Sequence, int]:
        for seq in plan.chunks:
            wanted = _ID.fullmatch(seq.id)
            if wanted is None:
                continue
            kind, at = wanted[1], int(wanted[2])
            if seq.num_generated == at or (kind == "slow" and seq.num_generated > at):
                self._fail(kind)
        return super().run(plan)

    def _fail(self, kind: str) -> None:
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exit":
            print("the engine's last words", file=sys.stderr, flush=True)
            os._exit(3)
        if kind == "garbage":
            self._link.sendall(protocol.HEADER.pack(3) + b"\xc1\xc1\xc1")
        if kind in ("hang", "garbage"):
            time.sleep(1e6)
        if kind == "slow":
            time.sleep(SLOW_S)
        if kind == "oom":
            raise torch.cuda.OutOfMemoryError("asked for by a test")
        if kind == "fatal":
            raise RuntimeError("CUDA error: the device is lost, as a test asked")


if __name__ == "__main__":
    sys.exit(worker.main(make_worker=FaultyWorker))
