"""An engine without torch: the real protocol, a real process, and faults on demand.

It repeats the last user message, a byte a step. A message of the form «!FAULT K» makes it
answer with x and, at its token K, run into that fault:

    crash    SIGKILL              hang     silent for good      oom      this request fails
    exit     status 3, last words garbage  a malformed frame    fatal    a Fatal that may heal

«!long» answers with x up to max_new_tokens, «!pages» with the kv_cache_max_page it was started
with. Faults of the start are options.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from byte_tokenizer import EOS, last_user_text

from youtu_llm import protocol
from youtu_llm.protocol import Add, EngineConfig, Heartbeat, MemoryStats, Output, PageStats, Usage

PAGE_TOKENS = 256
NUM_PAGES = 64
FAULTS = ("crash", "hang", "oom", "exit", "garbage", "fatal")


@dataclass
class Sequence:
    add: Add
    answer: Iterator[int]
    fault: str = ""
    fault_at: int = 0
    num_tokens: int = 0
    num_cached: int = 0
    said: list[int] = field(default_factory=list)
    added_at: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0

    @classmethod
    def of(cls, add: Add, config: EngineConfig) -> Sequence:
        text = last_user_text(add.prompt_ids)
        name, _, at = text.decode().partition(" ")
        endless = iter(lambda: ord("x"), None)
        if name == "!long":
            return cls(add, endless)
        if name == "!pages":
            return cls(add, iter([*str(config.kv_cache_max_page).encode(), EOS]))
        if name.removeprefix("!") in FAULTS:
            return cls(add, endless, name[1:], int(at))
        return cls(add, iter([*text, EOS]))

    @property
    def num_pages(self) -> int:
        return -(-(len(self.add.prompt_ids) + self.num_tokens) // PAGE_TOKENS)

    def output(self, ids: tuple[int, ...], reason: protocol.FinishReason | None) -> Output:
        usage = Usage(
            len(self.add.prompt_ids), self.num_cached, self.num_tokens, queue_s=self.queue_s
        )
        return Output(self.add.id, ids, reason, usage=usage if reason else None)


class FakeEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.link = socket.socket(fileno=options.fd)
        self.frames = protocol.FrameReader()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.known: deque[tuple[int, ...]] = deque(maxlen=16)
        self.config = EngineConfig("")

    def run(self) -> None:
        self.load()
        while True:
            self.take_messages(timeout_s=0.0 if self.running or self.waiting else 1.0)
            self.beat("step" if self.running or self.waiting else "idle")
            self.step()

    def load(self) -> None:
        (configure,) = self.receive(timeout_s=None)
        self.config = configure.config
        if self.options.at_pages not in (0, self.config.kv_cache_max_page):
            self.options.start = "well"
        if self.options.say:
            print(self.options.say, file=sys.stderr, flush=True)
        if self.options.start == "die":
            sys.exit(7)
        if self.options.start == "hang":
            hang()
        if self.options.start == "fatal":
            self.send(protocol.Fatal("model_error", self.options.say, heals=False))
            sys.exit(1)
        end = time.monotonic() + self.options.load_s
        while (left_s := end - time.monotonic()) > 0:
            self.beat("loading")
            time.sleep(min(left_s, 0.2))
        self.send(
            protocol.Hello(
                architecture="fake",
                backend="none",
                device="cpu",
                window_tokens=0,
                max_model_len=self.options.max_model_len,
                vocab_size=257,
                eos_token_ids=(EOS,),
                load_s=self.options.load_s,
                pages=self.pages(),
                memory=self.memory(),
            )
        )

    def step(self) -> None:
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting.pop(0)
            sequence.num_cached = max(
                (common_prefix(known, sequence.add.prompt_ids) for known in self.known), default=0
            )
            sequence.queue_s = time.monotonic() - sequence.added_at
            self.running.append(sequence)
            time.sleep(self.options.prefill_s)
        outputs = [self.advance(sequence) for sequence in list(self.running)]
        if outputs:
            time.sleep(self.options.step_s)
            self.send(protocol.Step(tuple(outputs)))

    def advance(self, sequence: Sequence) -> Output:
        if sequence.fault and sequence.num_tokens == sequence.fault_at:
            return self.fail(sequence)
        token = next(sequence.answer)
        sequence.num_tokens += 1
        sequence.said.append(token)
        reason: protocol.FinishReason | None = None
        if token == EOS:
            reason = "stop"
        elif sequence.num_tokens == sequence.add.params.max_new_tokens:
            reason = "length"
        if reason:
            self.end(sequence)
        return sequence.output((token,), reason)

    def fail(self, sequence: Sequence) -> Output:
        if sequence.fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if sequence.fault == "hang":
            hang()
        if sequence.fault == "exit":
            print("the fake engine's last words", file=sys.stderr, flush=True)
            sys.exit(3)
        if sequence.fault == "garbage":
            self.link.sendall(protocol.HEADER.pack(3) + b"\xc1\xc1\xc1")
            hang()
        if sequence.fault == "fatal":
            self.send(protocol.Fatal("cuda_error", "the device is lost", heals=True))
            sys.exit(1)
        self.running.remove(sequence)
        return Output(
            sequence.add.id,
            (),
            "error",
            error_code="out_of_memory",
            error_message="the engine ran out of memory on this request",
        )

    def take_messages(self, timeout_s: float) -> None:
        for message in self.receive(timeout_s):
            match message:
                case protocol.Add():
                    self.waiting.append(Sequence.of(message, self.config))
                    self.waiting.sort(key=lambda sequence: -sequence.add.priority)
                case protocol.Abort():
                    self.abort(message.id)
                case protocol.Shutdown():
                    sys.exit(0)

    def abort(self, id: str) -> None:
        for sequence in [s for s in (*self.waiting, *self.running) if s.add.id == id]:
            self.end(sequence)
            self.send(protocol.Step((sequence.output((), "abort"),)))

    def end(self, sequence: Sequence) -> None:
        queue = self.running if sequence in self.running else self.waiting
        queue.remove(sequence)
        if sequence.said:  # like the real one: what was computed is found again
            self.known.append((*sequence.add.prompt_ids, *sequence.said[:-1]))

    def receive(self, timeout_s: float | None) -> list[protocol.ToEngine]:
        readable, _, _ = select.select([self.link], [], [], timeout_s)
        if not readable:
            return []
        data = self.link.recv(1 << 16)
        if not data:
            sys.exit(0)  # the service is gone
        return [protocol.to_engine_decoder.decode(frame) for frame in self.frames.feed(data)]

    def beat(self, phase: protocol.Phase) -> None:
        running, waiting = len(self.running), len(self.waiting)
        admitted = [*self.running, *self.waiting][: self.config.max_num_seqs]
        tokens = sum(1 if s.num_tokens else len(s.add.prompt_ids) for s in admitted)
        prefilling = tuple(s.add.id for s in admitted if not s.num_tokens)
        pages, memory = self.pages(), self.memory()
        self.send(Heartbeat(phase, running, waiting, tokens, prefilling, pages, memory))

    def pages(self) -> PageStats:
        used = sum(sequence.num_pages for sequence in self.running)
        return PageStats(used, NUM_PAGES - used, NUM_PAGES, "kv_cache_max_page")

    def memory(self) -> MemoryStats:
        return MemoryStats(weights=1 << 20, used=2 << 20, total=4 << 20)

    def send(self, message: protocol.FromEngine) -> None:
        self.link.sendall(protocol.encode(message))


def common_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other[:-1], strict=False)
    return next((at for at, (x, y) in enumerate(pairs) if x != y), min(len(one), len(other) - 1))


def hang() -> None:
    while True:
        time.sleep(3600)


def die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--start", choices=("well", "die", "hang", "fatal"), default="well")
    parser.add_argument("--at-pages", type=int, default=0, help="only at this kv_cache_max_page")
    parser.add_argument("--say", default="", help="printed at the start, and Fatal's message")
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--prefill-s", type=float, default=0.0)
    parser.add_argument("--step-s", type=float, default=0.002)
    parser.add_argument("--max-model-len", type=int, default=2048)
    die_with_parent()
    try:
        FakeEngine(parser.parse_args()).run()
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the service is gone


if __name__ == "__main__":
    main()
