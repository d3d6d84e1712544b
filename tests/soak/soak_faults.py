"""Engines and services killed, requests cancelled, profiles switched, floods: many times over."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import psutil
import pytest
from harness import Daemon, events
from test_fuzz import check_bodies, check_bytes
from test_profiles import check_switches

Start = Callable[..., Daemon]
Share = Callable[[int], int]
Report = Callable[[str], None]

pytestmark = pytest.mark.timeout(0)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def test_sigkills_in_mid_stream(start: Start, share: Share, report: Report) -> None:
    count, load_s = share(200), 0.3
    daemon = start("--load-s", str(load_s), service={"max_restart_rate": "999/1"})
    pid = daemon.process.pid
    to_error: list[float] = []
    to_ready: list[float] = []
    hung: list[int] = []
    for number in range(count):
        speaking, ended_at = threading.Barrier(9), []
        threads = [
            threading.Thread(target=follow, args=(daemon, f"{number}.{n}", speaking, ended_at))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        try:
            speaking.wait(30)
        except threading.BrokenBarrierError:
            pytest.fail(daemon.log.read_text()[-3000:])
        time.sleep(random.random() * 0.2)
        killed_at = time.monotonic()
        daemon.engine().kill()
        for thread in threads:
            thread.join(30)
            hung += [number] * thread.is_alive()
        to_error.append(max(ended_at) - killed_at)
        daemon.wait_for("ready")
        to_ready.append(time.monotonic() - killed_at)
    report(
        f"{count} SIGKILLs, 8 streams each: error event p50"
        f" {percentile(to_error, 0.5) * 1e3:.0f} ms, max {max(to_error) * 1e3:.0f} ms; ready"
        f" again p50 {percentile(to_ready, 0.5):.2f} s, max {max(to_ready):.2f} s"
        f" (load {load_s} s); hung clients {len(hung)}"
    )
    assert (daemon.process.pid, daemon.process.poll(), hung) == (pid, None, [])
    assert daemon.health()["pages"]["used"] == 0


def follow(daemon: Daemon, name: str, speaking: threading.Barrier, ended_at: list[float]) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), timeout=60) as client:
        body = {
            "messages": [{"role": "system", "content": name}, {"role": "user", "content": "!long"}],
            "max_new_tokens": 4096,
        }
        with client.stream("POST", "http://y/chat", json=body) as response:
            assert response.status_code == 200, response.read()
            stream = events(response)
            next(stream)
            speaking.wait(30)
            *_, (last, _) = stream
            ended_at.append(time.monotonic())
            assert last == "error"


def test_a_killed_service_leaves_no_engine(start: Start, share: Share, report: Report) -> None:
    count, took = share(100), []
    daemon = start()
    for _ in range(count):
        engine = daemon.engine()
        daemon.process.kill()
        killed_at = time.monotonic()
        while is_alive(engine):
            time.sleep(0.002)
        took.append(time.monotonic() - killed_at)
        daemon.process.wait()
        daemon.start()
        daemon.wait_for("ready")
    report(f"{count} kill -9 of the service: engine gone after at most {max(took) * 1e3:.0f} ms")
    assert max(took) <= 1.0


def is_alive(process: psutil.Process) -> bool:
    """Its new parent may take its time to bury it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_cancels_and_disconnects(start: Start, share: Share, report: Report) -> None:
    count = share(10_000)
    daemon = start(service={"queue_size": 64}, bounds={"max_new_tokens": 4096})
    free = daemon.health()["pages"]["free"]

    async def one(client: aiohttp.ClientSession, number: int) -> str:
        id = f"cancel-{number}"
        kind = random.choice(["disconnect", "cancel", "too long", "whole"])
        prompt = {"too long": "x" * 3000, "whole": "hello"}.get(kind, "!long")
        body = {"prompt": prompt, "max_new_tokens": 4096, "stream": kind != "whole"}
        async with client.post("http://y/chat", json=body, headers={"X-Request-Id": id}) as answer:
            if kind in ("disconnect", "cancel"):
                await asyncio.sleep(random.random() * 0.02)
            if kind == "cancel":
                async with client.post(f"http://y/requests/{id}/cancel"):
                    await answer.read()
            elif kind != "disconnect":
                await answer.read()
            else:
                answer.close()
        return kind

    async def all_of_them() -> None:
        connector = aiohttp.UnixConnector(path=str(daemon.socket), limit=0)
        async with aiohttp.ClientSession(connector=connector) as client:
            for first in range(0, count, 32):
                await asyncio.gather(
                    *(one(client, n) for n in range(first, min(first + 32, count)))
                )

    began = time.monotonic()
    asyncio.run(all_of_them())
    health = daemon.wait(lambda h: h["queue"]["running"] == 0 and h["pages"]["used"] == 0)
    freed = cancel_to_free(daemon)
    report(
        f"{count} cancels, disconnects, over-long prompts in {time.monotonic() - began:.0f} s:"
        f" free pages {health['pages']['free']} of {free} at the start; {freed}"
    )
    assert health["pages"]["free"] == free
    assert health["engine"]["restarts"] == 0
    assert daemon.http.get("/requests").json()["requests"] == []


def cancel_to_free(daemon: Daemon) -> str:
    """From the metric's buckets."""
    lines = daemon.http.get("/metrics").text.splitlines()
    rows = [line for line in lines if line.startswith("youtu_cancel_to_free_seconds_bucket")]
    buckets = [(row.split('"')[1], float(row.split()[-1])) for row in rows]
    total = buckets[-1][1]
    bound = next(le for le, number in buckets if number >= 0.99 * total)
    return f"abort to the engine's last word: p99 <= {bound} s of {total:.0f}"


def test_a_flood_of_connections(start: Start, share: Share, report: Report) -> None:
    """A thousand connections that ask at ten times what the daemon can answer."""
    num_clients, seconds = 1000, max(10, share(30))
    daemon = start("--step-s", "0.02", engine={"max_num_seqs": 8}, service={"queue_size": 16})
    tokens = 50  # a second an answer: capacity 8 a second
    process = psutil.Process(daemon.process.pid)
    rss = process.memory_info().rss
    refused: list[float] = []
    lively: list[float] = []
    codes: dict[int, int] = {}
    peak = 0

    async def client(session: aiohttp.ClientSession, until: float) -> None:
        body = {"prompt": "!long", "max_new_tokens": tokens, "stream": False}
        while True:
            pause_s = random.expovariate(80 / num_clients)
            if time.monotonic() + pause_s > until:
                return
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            async with session.post("http://y/chat", json=body) as answer:
                await answer.read()
                codes[answer.status] = codes.get(answer.status, 0) + 1
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                    refused.append(time.monotonic() - began)

    async def look(session: aiohttp.ClientSession, until: float) -> None:
        nonlocal peak
        while time.monotonic() < until:
            began = time.monotonic()
            async with session.get("http://y/livez"):
                lively.append(time.monotonic() - began)
            async with session.get("http://y/health") as answer:
                queue = (await answer.json())["queue"]
                peak = max(peak, queue["running"] + queue["waiting"])
            await asyncio.sleep(0.1)

    async def flood() -> None:
        connector = aiohttp.UnixConnector(path=str(daemon.socket), limit=0)
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            until = time.monotonic() + seconds
            clients = [client(session, until) for _ in range(num_clients)]
            await asyncio.gather(look(session, until), *clients)

    asyncio.run(flood())
    growth = process.memory_info().rss - rss
    report(
        f"{num_clients} connections at 10x capacity for {seconds} s: {codes}; refusals p50"
        f" {percentile(refused, 0.5) * 1e3:.1f} ms, p99 {percentile(refused, 0.99) * 1e3:.1f} ms;"
        f" /livez p99 {percentile(lively, 0.99) * 1e3:.1f} ms; at most {peak} taken of 24;"
        f" RSS +{growth / 2**20:.1f} MiB"
    )
    assert set(codes) == {200, 429}
    assert peak <= 24
    assert growth < 64 << 20


def test_profile_switches(start: Start, share: Share, report: Report) -> None:
    daemon, count = start(), share(500)
    began = time.monotonic()
    answers = check_switches(daemon, count)
    report(
        f"{count} switches in {time.monotonic() - began:.0f} s under load: {answers} answers, each"
        " of the profile it names; 0 wrong, 0 stuck, 0 restarts by fault"
    )


def test_fuzzed_bodies(start: Start, share: Share, report: Report) -> None:
    began, count = time.monotonic(), share(100_000)
    counts = check_bodies(start(), count)
    report(f"{count} bodies from the schemas in {time.monotonic() - began:.0f} s: {counts}")


def test_fuzzed_bytes(start: Start, share: Share, report: Report) -> None:
    seed = random.randrange(1 << 32)
    began, count = time.monotonic(), share(100_000)
    report(f"seed of the bytes: {seed}")
    counts = check_bytes(start(), count, seed=seed)
    report(f"{count} spoiled requests in {time.monotonic() - began:.0f} s: {counts}")


def test_restarts_by_the_clock(start: Start, report: Report) -> None:
    """An engine that crashes at its start: exactly the rate, then «failed» at once."""
    daemon = start("--start", "die", "--at-pages", "7", service={"max_restart_rate": "3/300"})
    daemon.edit(model={**daemon.config()["model"], "kv_cache_max_page": 7})
    daemon.restart()
    began: Any = time.monotonic()
    health = daemon.wait_for("failed")
    report(
        f"failed after {health['engine']['restarts']} restarts, {time.monotonic() - began:.1f} s"
    )
    assert health["engine"]["restarts"] == 3
