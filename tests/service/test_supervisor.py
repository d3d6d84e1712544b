"""Engines that crash, hang, send garbage or do not start, as a client sees it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from harness import Daemon, events

from youtu_llm.service.supervision.supervisor import LONGEST_RESTART_DELAY_S, RestartWindow

Start = Callable[..., Daemon]


def ending(daemon: Daemon, prompt: str) -> tuple[str, dict[str, str]]:
    """The last event of a stream that has begun."""
    with daemon.stream(prompt, max_new_tokens=4096) as response:
        assert response.status_code == 200
        *_, last = events(response)
    name, data = last
    return name, data.get("error", data)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "SIGKILL"),
        ("exit", "status 3"),
        ("garbage", "malformed"),
        ("fatal", "the device is lost"),
    ],
)
def test_a_crash_ends_the_stream_with_an_error_and_restarts_the_engine(
    start: Start, fault: str, reason: str
) -> None:
    daemon = start()
    pid = daemon.wait_for("ready") and daemon.engine().pid
    name, error = ending(daemon, f"!{fault} 3")
    assert name == "error"
    assert error["code"] == "engine_error"
    health = daemon.wait(lambda h: h["state"] == "ready" and h["engine"]["restarts"] == 1)
    assert reason in health["engine"]["last_crash"]["reason"]
    assert daemon.engine().pid != pid
    assert daemon.chat("still there").json()["text"] == "still there"
    if fault == "exit":
        assert health["engine"]["last_crash"]["log"] == ["the fake engine's last words"]


def test_requests_are_refused_while_the_model_loads(start: Start) -> None:
    daemon = start("--start", "hang")
    assert daemon.wait_for("loading")["reason"] == "the model is being loaded"
    refused = daemon.chat("hello")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
    assert int(refused.headers["retry-after"]) >= 1
    assert daemon.http.get("/livez").status_code == 200
    assert daemon.http.get("/readyz").status_code == 503


def test_a_crash_before_the_first_token_is_an_error_status(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    assert daemon.http.get("/readyz").status_code == 200
    died = daemon.chat("!crash 0", stream=True)
    assert (died.status_code, died.json()["error"]["code"]) == (500, "engine_error")


def test_waiting_requests_survive_a_crash(start: Start) -> None:
    daemon = start("--load-s", "3", engine={"max_num_seqs": 1})
    daemon.wait_for("ready")
    with daemon.stream("!long", max_new_tokens=4096) as response, ThreadPoolExecutor() as pool:
        stream = events(response)
        next(stream)
        patient = pool.submit(daemon.chat, "hello")
        cancelled = pool.submit(
            daemon.http.post,
            "/chat",
            json={"prompt": "!long", "max_new_tokens": 4096, "stream": False},
            headers={"X-Request-Id": "never-mind"},
        )
        daemon.wait(lambda health: queued(health) == 3)
        daemon.engine().kill()
        *_, (name, _) = stream
        assert name == "error"
        daemon.http.post("/requests/never-mind/cancel")
        assert cancelled.result().json()["finish_reason"] == "cancelled"
        assert patient.result().json()["text"] == "hello"
    assert daemon.health()["engine"]["restarts"] == 1


def test_waiting_requests_fail_when_the_engine_is_not_restarted(start: Start) -> None:
    daemon = start(engine={"max_num_seqs": 1}, service={"max_restart_rate": "0/300"})
    daemon.wait_for("ready")
    with daemon.stream("!long", max_new_tokens=4096) as response, ThreadPoolExecutor() as pool:
        stream = events(response)  # kept: garbage collection would disconnect
        next(stream)
        waiting = pool.submit(daemon.chat, "hello")
        daemon.wait(lambda health: queued(health) == 2)
        daemon.engine().kill()
        told = waiting.result()
    assert (told.status_code, told.json()["error"]["code"]) == (503, "failed")
    assert int(told.headers["retry-after"]) >= 1


def queued(health: dict[str, Any]) -> int:
    return int(health["queue"]["running"] + health["queue"]["waiting"])


def test_out_of_memory_fails_one_request_only(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    assert ending(daemon, "!oom 3")[1]["code"] == "out_of_memory"
    assert daemon.chat("hello").json()["text"] == "hello"
    assert daemon.health()["engine"]["restarts"] == 0


def test_a_silent_engine_is_killed_and_a_slow_start_is_not_silence(start: Start) -> None:
    daemon = start("--load-s", "2.5", service={"engine_silence_s": 2.0})
    assert daemon.wait_for("ready")["engine"]["restarts"] == 0
    assert ending(daemon, "!hang 3")[0] == "error"
    health = daemon.wait(lambda h: h["state"] == "ready" and h["engine"]["restarts"] == 1)
    assert "silent for 2 s" in health["engine"]["last_crash"]["reason"]


def test_a_suspended_machine_is_not_a_hang(start: Start) -> None:
    """Like a paused virtual machine; the service resumes first."""
    daemon = start(service={"engine_silence_s": 2.0})
    daemon.wait_for("ready")
    halted = [psutil.Process(daemon.process.pid), daemon.engine()]
    for process in halted:
        process.suspend()
    time.sleep(4)
    for process in halted:
        process.resume()
        time.sleep(0.5)
    assert daemon.chat("hello").json()["text"] == "hello"
    assert daemon.health()["engine"]["restarts"] == 0


def test_an_engine_that_crashes_at_its_start_exhausts_the_rate(start: Start) -> None:
    daemon = start("--start", "die", "--say", "no luck", service={"max_restart_rate": "2/300"})
    health = daemon.wait_for("failed")
    assert health["engine"]["restarts"] == 2
    assert "status 7" in health["reason"]
    assert "2 restarts in 300 s" in health["reason"]
    assert health["engine"]["last_crash"]["log"] == ["no luck"]
    refused = daemon.chat("hello")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "failed")
    assert refused.json()["error"]["message"] == health["reason"]
    with httpx.Client(base_url=daemon.url) as tcp:  # the log may reveal file names
        assert "log" not in tcp.get("/health").json()["engine"]["last_crash"]


def test_a_permanent_failure_is_not_retried(start: Start) -> None:
    daemon = start("--start", "fatal", "--say", "model.safetensors is cut short")
    health = daemon.wait_for("failed")
    assert health["reason"] == "model.safetensors is cut short"
    assert health["engine"]["restarts"] == 0


def test_restart_on_failure_may_be_off(start: Start) -> None:
    daemon = start(service={"restart_on_failure": False})
    daemon.wait_for("ready")
    daemon.engine().kill()
    assert "restart_on_failure is off" in daemon.wait_for("failed")["reason"]


def test_a_missing_model_says_what_to_do(start: Start) -> None:
    daemon = start(model={"name": "no-such-model"})
    reason = daemon.wait_for("failed")["reason"]
    assert "youtu pull no-such-model" in reason
    assert daemon.chat("hello").status_code == 503


def test_the_window_slides_and_the_delay_is_bounded() -> None:
    window = RestartWindow("100/10")
    delays = [window.delay_s(0.0) for _ in range(100)]
    assert max(delay for delay in delays if delay is not None) == LONGEST_RESTART_DELAY_S
    window = RestartWindow("2/10")
    assert window.delay_s(0.0) is not None
    assert window.delay_s(9.0) is not None
    assert window.delay_s(10.0) is None
    assert window.delay_s(10.1) is not None
    assert window.delay_s(18.0) is None


def test_sigterm_drains_running_requests_and_leaves_no_engine(start: Start) -> None:
    daemon = start(engine={"max_num_seqs": 4})
    daemon.wait_for("ready")
    engine = daemon.engine()
    with daemon.stream("x" * 300, max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        daemon.process.send_signal(signal.SIGTERM)
        *_, (name, done) = stream
    assert name == "done"
    assert done["finish_reason"] == "stop"
    assert daemon.process.wait() == 0
    assert not engine.is_running()


@pytest.mark.parametrize("silent", [False, True])
def test_at_the_end_of_the_drain_an_answer_ends_as_shutdown(start: Start, silent: bool) -> None:
    daemon = start(service={"drain_timeout_s": 0.2})
    daemon.wait_for("ready")
    with daemon.stream("!long", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        if silent:
            daemon.engine().suspend()
        daemon.process.send_signal(signal.SIGTERM)
        *_, (name, done) = stream
    assert (name, done["finish_reason"]) == ("done", "shutdown")
    assert daemon.process.wait() == 0


def test_a_killed_service_leaves_no_engine(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    engine = daemon.engine()
    with daemon.stream("!hang 1") as response:
        stream = events(response)
        next(stream)
        daemon.process.kill()
        psutil.wait_procs([engine])
    assert not engine.is_running()
