"""The real engine under the faults it takes in tests, as a client of the daemon sees it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.faulty_engine import SLOW_S

sys.path[:0] = [str(Path(__file__).parents[1] / "service"), str(Path(__file__).parents[1])]

from harness import Daemon, events  # noqa: E402  it lies beside the service's tests

ENDS = {
    "crash": "SIGKILL",
    "exit": "status 3",
    "garbage": "malformed",
    "fatal": "the device is lost",
    "hang": "silent for 10 s",
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    model = tmp_path / "tiny"
    tiny.make("llama", model, vocab_size=257)
    with ExitStack() as stack:

        def starter() -> Daemon:
            config = {
                "model": {"name": str(model)},
                "engine": {"device": "cpu", "dtype": "float32", "kernels": "reference"},
                "service": {"max_restart_rate": "9/300", "engine_silence_s": 10.0},
            }
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="youtu"))
            daemon = Daemon(Path(folder), config, ["--faulty"])
            stack.callback(daemon.stop)
            daemon.wait_for("ready")
            return daemon

        yield starter


def ask(daemon: Daemon, id: str, max_new_tokens: int = 8) -> dict[str, Any]:
    body = {"prompt": "hello", "stream": False, "max_new_tokens": max_new_tokens}
    answer: dict[str, Any] = daemon.http.post(
        "/chat", json=body, headers={"X-Request-Id": id}
    ).json()
    return answer


def test_each_ends_as_it_should(start: Callable[..., Daemon]) -> None:
    daemon = start()
    for number, (kind, reason) in enumerate(ENDS.items(), start=1):
        body = {"prompt": f"{kind} please", "max_new_tokens": 64}
        id = {"X-Request-Id": f"fault:{kind}:3"}
        with daemon.http.stream("POST", "/chat", json=body, headers=id) as response:
            *_, (name, data) = events(response)
        assert (name, data["error"]["code"]) == ("error", "engine_error")
        health = daemon.wait(
            lambda h, n=number: h["state"] == "ready" and h["engine"]["restarts"] == n
        )
        assert reason in health["engine"]["last_crash"]["reason"]
    with daemon.stream("!long", max_new_tokens=400) as response:
        others = events(response)
        next(others)
        assert ask(daemon, "fault:oom:2")["error"]["code"] == "out_of_memory"
        *_, (name, data) = others
    assert (name, data["finish_reason"]) == ("done", "length")
    slow = ask(daemon, "fault:slow:1")
    assert slow["timings"]["decode_tokens_per_s"] < 4 / SLOW_S  # by a clock behind a queue
    assert daemon.health()["engine"]["restarts"] == len(ENDS)
