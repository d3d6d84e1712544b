"""Changing the live profile: at once, by an engine restart, rolled back, across restarts."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Daemon, events

from youtu_llm import atomicfile

Start = Callable[..., Daemon]


def test_a_change_without_an_engine_restart_applies_at_once(start: Start) -> None:
    daemon = start(text={"system_prompt": "Be kind."})
    daemon.wait_for("ready")
    daemon.profile("brief", sampling={"max_new_tokens": 2}, text={"system_prompt": "Be brief."})
    daemon.profile("broken", sampling={"max_new_tokens": "many"})
    assert daemon.http.get("/profiles").json()["profiles"] == ["brief", "broken"]
    engine = daemon.engine().pid

    with daemon.stream("x" * 100) as response:  # keeps its configuration
        stream = events(response)
        next(stream)
        assert daemon.use("brief").status_code == 200
        *_, (_, done) = stream
    assert (len(done["text"]), done["profile"], done["generation"]) == (100, "default", 1)
    assert daemon.http.get("/profile").json()["settings"]["sampling"]["max_new_tokens"] == 2
    done = daemon.chat("!long").json()
    assert (done["text"], done["profile"], done["generation"]) == ("xx", "brief", 2)
    answer = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}
    whole = daemon.http.post("/v1/chat/completions", json=answer).json()
    assert whole["system_fingerprint"] == "brief-2"

    broken = daemon.use("broken")
    assert broken.status_code == 400
    assert "broken.yaml:1:" in broken.json()["error"]["message"]
    assert daemon.use("no-such").status_code == 400
    assert daemon.health()["profile"] == "brief"
    assert daemon.engine().pid == engine

    assert daemon.http.post("/reload").json()["name"] == "default"  # that of the files
    daemon.edit(profile="brief")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait(lambda health: health["profile"] == "brief")
    daemon.edit(service={**daemon.config()["service"], "port": 0})
    moved = daemon.http.post("/reload")
    assert (moved.status_code, moved.json()["error"]["code"]) == (409, "restart_needed")
    assert "service.port" in moved.json()["error"]["message"]


def test_an_engine_restart_waits_for_running_requests(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    daemon.profile("small", model={"kv_cache_max_page": 7})
    engine = daemon.engine()
    with daemon.stream("x" * 100) as response:
        stream = events(response)
        next(stream)
        assert daemon.use("small").json()["name"] == "small"
        *_, (_, done) = stream
    assert (len(done["text"]), done["finish_reason"]) == (100, "stop")
    assert done["profile"] == "default"
    assert not engine.is_running()
    done = daemon.chat("!pages").json()
    assert (done["text"], done["profile"]) == ("7", "small")
    assert daemon.health()["engine"]["restarts"] == 0


def test_a_request_that_outlasts_the_drain_ends_with_its_tokens_so_far(start: Start) -> None:
    daemon = start(service={"drain_timeout_s": 0.2})
    daemon.wait_for("ready")
    daemon.profile("small", model={"kv_cache_max_page": 7})
    with daemon.stream("!long", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        assert daemon.use("small").status_code == 200
        *_, (_, done) = stream
    assert done["finish_reason"] == "switched"


@pytest.mark.parametrize("fault", ["fatal", "die"])
def test_an_engine_that_does_not_load_rolls_back(start: Start, fault: str) -> None:
    daemon = start("--start", fault, "--at-pages", "7", "--say", "no memory for this")
    daemon.wait_for("ready")
    daemon.profile("bad", model={"kv_cache_max_page": 7})
    refused = daemon.use("bad")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "switch_failed")
    assert "«default» is live again" in refused.json()["error"]["message"]
    health = daemon.wait_for("ready")
    assert (health["profile"], health["generation"]) == ("default", 1)
    assert "«bad» cannot be used" in health["degraded"][0]
    assert daemon.chat("hello").json()["profile"] == "default"
    engine = daemon.engine().pid
    good = daemon.config()
    daemon.edit(model={"name": "absent"})
    absent = daemon.http.post("/reload")
    assert "youtu pull absent" in absent.json()["error"]["message"]
    assert daemon.engine().pid == engine
    daemon.edit(**good)
    daemon.profile("good", sampling={"max_new_tokens": 2})
    assert daemon.use("good").status_code == 200
    assert daemon.health()["degraded"] == []


def test_a_reload_restarts_a_failed_engine(start: Start) -> None:
    daemon = start(service={"max_restart_rate": "0/300"})
    daemon.wait_for("ready")
    daemon.engine().kill()
    daemon.wait_for("failed")
    assert daemon.http.post("/reload").status_code == 200
    assert daemon.chat("hello").json()["text"] == "hello"


def test_the_choice_survives_a_restart_until_config_yaml_is_written(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    for name in ("one", "two"):
        daemon.profile(name, sampling={"max_new_tokens": 1})
    assert daemon.use("one").status_code == 200
    daemon.restart()
    assert daemon.wait_for("ready")["profile"] == "one"
    daemon.edit(profile="two")
    daemon.restart()
    assert daemon.wait_for("ready")["profile"] == "two"
    assert daemon.use("one").status_code == 200
    (daemon.folder / "profiles" / "one.yaml").unlink()
    daemon.restart()
    health = daemon.wait_for("ready")
    assert health["profile"] == "two"
    assert "saved profile «one» cannot be used" in health["degraded"][0]


def test_switches_under_load(start: Start) -> None:
    """Twelve switches under load; `make soak` runs five hundred."""
    daemon = start()
    daemon.wait_for("ready")
    check_switches(daemon, 12)


def check_switches(daemon: Daemon, count: int) -> int:
    """Random switches under load; the number of answers, each checked against its profile."""
    pages = {"three": 3, "four": 4, "brief": 2048}
    for name, number in pages.items():
        brief = {"sampling": {"max_new_tokens": 3}} if name == "brief" else {}
        daemon.profile(name, model={"kv_cache_max_page": number}, **brief)
    pages["default"] = 2048
    over = threading.Event()
    wrong: list[Any] = []
    answered: list[str] = []

    def ask() -> None:
        with httpx.Client(
            base_url="http://y", transport=httpx.HTTPTransport(uds=str(daemon.socket)), timeout=60
        ) as client:
            while not over.is_set():
                answer = client.post("/chat", json={"prompt": "!pages", "stream": False})
                body = answer.json()
                if answer.status_code == 200:
                    answered.append(body["profile"])
                    said = str(pages[body["profile"]])
                    if body["text"] != (said[:3] if body["profile"] == "brief" else said):
                        wrong.append(body)
                elif answer.status_code != 503:
                    wrong.append(body)
                over.wait(0.01)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            assert daemon.use(random.choice(["three", "four", "brief"])).status_code == 200
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert daemon.http.get("/requests").json()["requests"] == []
    health = daemon.wait(lambda health: health["pages"]["used"] == 0)
    assert (health["state"], health["engine"]["restarts"]) == ("ready", 0)
    return len(answered)


def test_a_power_cut_at_any_write_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """A child process exits at its n-th call that reaches the disk, for every n."""
    file = tmp_path / "profile.json"
    old, new = b"old" * 1000, b"new" * 2000
    seen = set()
    for cut in range(1, 20):
        file.write_bytes(old)
        child = os.fork()
        if child == 0:
            exit_at_call(cut)
            atomicfile.replace(file, new)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert file.read_bytes() in (old, new)
        seen.add(file.read_bytes() == new)
        if status == 0:
            break
    assert status == 0, "the last child was cut nowhere"
    assert seen == {False, True}


def exit_at_call(count: int) -> None:
    """Make this process exit at its count-th call of fsync, replace, fchmod or open."""
    calls = iter(range(1, 1000))
    for name in ("fsync", "replace", "fchmod", "open"):
        real = getattr(os, name)

        def cut(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            if next(calls) == count:
                os._exit(1)
            return _real(*args, **kwargs)

        setattr(os, name, cut)


def test_a_rejected_sighup_is_degraded_until_the_next_good_one(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    good = daemon.config_file.read_text()
    daemon.config_file.write_text("sampling: {temperature: hot}\n")
    daemon.process.send_signal(signal.SIGHUP)
    health = daemon.wait(lambda h: h["degraded"] != [])
    assert "sampling.temperature" in health["degraded"][0]
    assert daemon.chat("hello").status_code == 200
    daemon.config_file.write_text(good)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait(lambda h: h["degraded"] == [])
