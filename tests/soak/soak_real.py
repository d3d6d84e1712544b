"""The real engine with the small model: barge-in in figures, and an hour of mixed traffic."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from harness import Daemon, events

from tests.test_manifest import DAMAGES
from youtu_llm import paths

Start = Callable[..., Daemon]
Report = Callable[[str], None]

pytestmark = [pytest.mark.model, pytest.mark.timeout(0)]

MODEL = "qwen2.5-coder-0.5b"
SAMPLE_S = 5.0
NUM_SESSIONS = 40  # more than the daemon keeps


@pytest.fixture
def daemon(start: Start) -> Daemon:
    system = {"system_prompt": "你是车载语音助手。请用简短的中文回答。"}
    # Few pages, so that `fill` fills them.
    model = {"name": str(paths.models_dir() / MODEL), "kv_cache_max_page": 16}
    return start("--real", model=model, text=system)


def test_barge_in(daemon: Daemon, report: Report) -> None:
    rows = []
    for number in range(5):
        session = f"car-{number}"
        with daemon.stream(
            "请详细介绍一下这座城市的历史和景点。", session=session, max_new_tokens=512
        ) as response:
            stream = events(response)
            for _ in range(20):
                next(stream)
            with ThreadPoolExecutor(1) as pool:
                began_at = time.monotonic()
                second = pool.submit(daemon.chat, "不，去机场。", session=session, max_new_tokens=8)
                *_, (_, done) = stream
                ended_at = time.monotonic()
        assert done["finish_reason"] == "interrupted"
        usage = second.result().json()["usage"]
        step_ms = 1e3 / done["timings"]["decode_tokens_per_s"]
        new = usage["prompt_tokens"] - usage["cached_tokens"]
        rows.append(((ended_at - began_at) * 1e3, step_ms, new, usage["prompt_tokens"]))
    report(
        "barge-in, new utterance to the old stream's done (decode step), computed of the prompt: "
        + "; ".join(f"{ms:.0f} ms ({step:.0f} ms), {new} of {n}" for ms, step, new, n in rows)
    )
    for ms, step_ms, new, _ in rows:
        assert ms <= step_ms + 50
        assert new <= 24  # «不，去机场。» with its marks, and the last token said


def test_long_prompts_hold_nobody_up(daemon: Daemon, report: Report) -> None:
    """Encoding a megabyte takes a second: a voice and the probes go on meanwhile."""
    over, probes, gaps = threading.Event(), [], []

    def probe() -> None:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket))) as client:
            while not over.wait(0.02):
                asked_at = time.monotonic()
                client.get("http://y/livez")
                probes.append(time.monotonic() - asked_at)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(probe)
        with daemon.stream("写一首关于海的长诗。", max_new_tokens=150) as response:
            stream = events(response)
            next(stream)
            heard_at = time.monotonic()
            bodies = [pool.submit(daemon.chat, f"{i}" + "the city " * 110_000) for i in range(4)]
            for _ in stream:
                gaps.append(time.monotonic() - heard_at)
                heard_at = time.monotonic()
        refused = [body.result() for body in bodies]
        over.set()
    report(
        f"four prompts of 1 MB beside a voice: its longest gap {max(gaps) * 1e3:.0f} ms;"
        f" /livez at most {max(probes) * 1e3:.0f} ms of {len(probes)}"
    )
    assert {answer.status_code for answer in refused} == {400}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model(start: Start, tmp_path: Path, report: Report, damage: str) -> None:
    folder = tmp_path / MODEL
    shutil.copytree(paths.models_dir() / MODEL, folder)
    daemon = start("--real", model={"name": str(folder)})
    DAMAGES[damage](folder / "model.safetensors")
    daemon.restart()
    found_at = time_of("ERROR engine: ", daemon.log)
    late_ms = (time_of(": failed: ", daemon.log) - found_at) * 1e3
    report(f"{damage} of a model: failed {late_ms:.0f} ms after it was found")
    assert late_ms <= 1000
    health = daemon.wait_for("failed")
    assert "its SHA-256" in health["reason"]
    assert health["engine"]["restarts"] == 0


def time_of(words: str, log: Path) -> float:
    over = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < over, log.read_text()
        time.sleep(0.002)
    return time.monotonic()


def test_mixed_traffic(daemon: Daemon, report: Report) -> None:
    seconds = float(os.environ.get("SOAK_S", "3600"))
    fill(daemon)
    over = threading.Event()
    counts: dict[str, int] = {}
    threads = [threading.Thread(target=talk, args=(daemon, over, counts)) for _ in range(3)]
    for thread in threads:
        thread.start()
    service, engine = psutil.Process(daemon.process.pid), daemon.engine()
    rows = []
    began = time.monotonic()
    while (at := time.monotonic() - began) < seconds:
        rows.append(
            (
                at / 3600,
                service.memory_info().rss / 1e6,
                engine.memory_info().rss / 1e6,
                service.num_fds(),
                service.num_threads(),
            )
        )
        time.sleep(SAMPLE_S)
    over.set()
    for thread in threads:
        thread.join()
    settled = [row for row in rows if row[0] > seconds / 3600 / 5]  # buffers grow to their sizes
    service_mb, engine_mb = ([row[column] for row in settled] for column in (1, 2))
    report(
        f"{seconds:.0f} s of mixed traffic, {counts}: per hour, service RSS"
        f" {slope(settled, 1):+.2f} MB ({min(service_mb):.1f} to {max(service_mb):.1f}), engine RSS"
        f" {slope(settled, 2):+.2f} MB ({min(engine_mb):.1f} to {max(engine_mb):.1f}), descriptors"
        f" {slope(settled, 3):+.2f}; at the end {rows[-1][3]} descriptors, {rows[-1][4]} threads"
    )
    health = daemon.wait(lambda h: h["queue"]["running"] == 0)
    assert health["engine"]["restarts"] == 0
    assert counts.get("other", 0) == 0
    if seconds >= 3600:
        assert slope(settled, 1) < 0.5
        assert slope(settled, 2) < 2.0


def fill(daemon: Daemon) -> None:
    """What is bounded is full before growth is looked for: cache pages, conversations."""
    for number in range(NUM_SESSIONS):
        text = f"{number}: " + "讲一个关于猫的长故事，再讲一个关于城市的。" * 40
        assert daemon.chat(text, session=f"s{number}", max_new_tokens=1).status_code == 200
    pages = daemon.health()["pages"]
    assert pages["used"] + pages["cached"] >= pages["limit"] - 4, pages


def talk(daemon: Daemon, over: threading.Event, counts: dict[str, int]) -> None:
    questions = ("你好", "导航到最近的加油站", "写一个排序函数", "讲一个关于猫的长故事")
    with httpx.Client(
        base_url="http://y", transport=httpx.HTTPTransport(uds=str(daemon.socket)), timeout=600
    ) as client:
        while not over.is_set():
            body = {"prompt": random.choice(questions), "max_new_tokens": random.randint(1, 40)}
            if random.random() < 0.5:
                body["session"] = f"s{random.randrange(NUM_SESSIONS)}"
            with client.stream("POST", "/chat", json=body) as response:
                kind = leave_or_listen(response) if response.status_code == 200 else "other"
            counts[kind] = counts.get(kind, 0) + 1


def leave_or_listen(response: httpx.Response) -> str:
    """One in five hangs up after a word."""
    stream: Iterator[tuple[str, dict[str, object]]] = events(response)
    first, _ = next(stream)
    if first == "token" and random.random() < 0.2:
        return "hung up"
    return [first, *(name for name, _ in stream)][-1]


def slope(rows: list[tuple[float, ...]], column: int) -> float:
    """By least squares, per hour."""
    n = len(rows)
    if n < 2:
        return 0.0
    mean_x = sum(row[0] for row in rows) / n
    mean_y = sum(row[column] for row in rows) / n
    above = sum((row[0] - mean_x) * (row[column] - mean_y) for row in rows)
    return above / sum((row[0] - mean_x) ** 2 for row in rows)
