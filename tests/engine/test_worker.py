"""The engine as a process: its handshake, its answers, its ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lab.bench import random_model
from tests import test_manifest
from tests.engine import tiny
from youtu_llm import manifest, protocol
from youtu_llm.protocol import (
    Abort,
    Add,
    Configure,
    Fatal,
    FromEngine,
    Heartbeat,
    Hello,
    Output,
    Shutdown,
    Step,
)


class Engine:
    """The other end of the socket pair."""

    def __init__(self) -> None:
        self.socket, child = socket.socketpair()
        self.socket.settimeout(60)
        command = [sys.executable, "-m", "youtu_llm.engine", "--fd", str(child.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[child.fileno()], stderr=subprocess.PIPE, text=True
        )
        child.close()
        self.reader = protocol.FrameReader()
        self.inbox: list[FromEngine] = []

    def send(self, message: protocol.ToEngine) -> None:
        self.socket.sendall(protocol.encode(message))

    def receive(self, wanted: Callable[[FromEngine], bool]) -> FromEngine:
        """The next message that is wanted; others are dropped."""
        while True:
            while self.inbox:
                message = self.inbox.pop(0)
                if wanted(message):
                    return message
            data = self.socket.recv(1 << 16)
            assert data, "the engine closed its socket"
            frames = self.reader.feed(data)
            self.inbox += [protocol.from_engine_decoder.decode(frame) for frame in frames]

    def hello(self) -> Hello:
        message = self.receive(lambda m: isinstance(m, (Hello, Fatal)))
        assert isinstance(message, Hello), message
        return message

    def last_output(self, id: str) -> Output:
        def ends(message: FromEngine) -> bool:
            return isinstance(message, Step) and any(o.finish_reason for o in message.outputs)

        while True:
            step = self.receive(ends)
            assert isinstance(step, Step)
            for output in step.outputs:
                if output.id == id and output.finish_reason:
                    return output

    def close(self) -> None:
        self.socket.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    running = Engine()
    yield running
    running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny.make("llama", path)
    return path


def test_answers_aborts_and_ends_with_the_service(engine: Engine, folder: Path) -> None:
    engine.send(Configure(tiny.engine_config(folder)))
    hello = engine.hello()
    assert hello.architecture == "LlamaForCausalLM"
    assert hello.max_model_len == 4096
    engine.send(Add("a", tuple(tiny.prompt(20)), tiny.greedy(5)))
    assert engine.last_output("a").usage == protocol.Usage(
        prompt_tokens=20, completion_tokens=5, queue_s=pytest.approx(0, abs=5)
    )
    engine.send(Add("b", tuple(tiny.prompt(20)), tiny.greedy(4000)))
    engine.receive(lambda m: isinstance(m, Step) and m.outputs[0].id == "b")
    engine.send(Abort("b"))
    engine.send(Abort("b"))
    assert engine.last_output("b").finish_reason == "abort"
    idle = engine.receive(lambda m: isinstance(m, Heartbeat) and m.phase == "idle")
    assert isinstance(idle, Heartbeat)
    assert idle.pages.used == 0

    engine.send(Add("long", tuple(tiny.prompt(5000)), tiny.greedy(5)))
    refused = engine.last_output("long")
    assert refused.error_code == "context_length_exceeded"
    engine.socket.shutdown(socket.SHUT_RDWR)
    assert engine.process.wait(10) == 0


def test_shutdown(engine: Engine, folder: Path) -> None:
    engine.send(Configure(tiny.engine_config(folder)))
    engine.hello()
    engine.send(Shutdown())
    assert engine.process.wait(10) == 0


def test_a_missing_model_is_fatal_and_does_not_heal(engine: Engine, tmp_path: Path) -> None:
    engine.send(Configure(tiny.engine_config(tmp_path)))
    fatal = engine.receive(lambda m: isinstance(m, Fatal))
    assert isinstance(fatal, Fatal)
    assert not fatal.heals
    assert "youtu pull" in fatal.message
    assert engine.process.wait(10) == 1


def test_a_model_is_named_by_its_manifest(engine: Engine, tmp_path: Path) -> None:
    tiny.make("llama", tmp_path)
    test_manifest.write(tmp_path)
    engine.send(Configure(tiny.engine_config(tmp_path)))
    assert engine.hello().model_digest == manifest.sha256_of(tmp_path / manifest.MANIFEST)


@pytest.mark.parametrize("damage", ["a flipped bit", "a missing shard"])
def test_a_damaged_model_is_fatal_with_both_checksums(
    engine: Engine, tmp_path: Path, damage: str
) -> None:
    tiny.make("llama", tmp_path)
    right = test_manifest.write(tmp_path).files["model.safetensors"].sha256
    test_manifest.DAMAGES[damage](tmp_path / "model.safetensors")
    engine.send(Configure(tiny.engine_config(tmp_path)))
    fatal = engine.receive(lambda m: isinstance(m, (Hello, Fatal)))
    assert isinstance(fatal, Fatal)
    assert not fatal.heals
    assert "model.safetensors" in fatal.message
    assert right in fatal.message


@pytest.mark.long
def test_full_size_youtu_fits(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Youtu-LLM-2B's real shape with random INT4 weights: memory on the CPU, cache a token."""
    folder = random_model.write("youtu-llm-2b", tmp_path)
    engine.socket.settimeout(300)
    started = time.monotonic()
    engine.send(Configure(protocol.EngineConfig(str(folder), device="cpu", max_num_seqs=1)))
    hello = engine.hello()
    load_s = time.monotonic() - started
    ids = tuple(range(1000, 1300))
    engine.send(Add("a", ids, protocol.SamplingParams(max_new_tokens=16, ignore_eos=True)))
    assert engine.last_output("a").usage is not None
    process = psutil.Process(engine.process.pid)
    resident = process.memory_info().rss
    peak = int(
        (Path("/proc") / str(process.pid) / "status").read_text().split("VmHWM:")[1].split()[0]
    )
    with capsys.disabled():
        print(
            f"\nyoutu-llm-2b random INT4 on {hello.backend}: load {load_s:.1f} s, RSS "
            f"{resident / 1e9:.2f} GB, peak {peak / 1e6:.2f} GB; {os.cpu_count()} cores"
        )
    assert resident < 2.5e9
    heartbeat = engine.receive(lambda m: isinstance(m, Heartbeat) and m.memory.cache > 0)
    assert isinstance(heartbeat, Heartbeat)
    chunk_tokens = heartbeat.memory.cache / 36_864
    assert chunk_tokens % protocol.PAGE_SIZE == 0, "a token takes 36,864 bytes"
    assert 0 < chunk_tokens <= 4096
