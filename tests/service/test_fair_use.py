"""Who is admitted, who comes first, and what is stopped for the others' sake."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import Daemon, events
from hypothesis import given
from hypothesis import strategies as st

from youtu_llm.protocol import Heartbeat, Step
from youtu_llm.service.requests.admission import LONGEST_RETRY_S, Rate
from youtu_llm.service.requests.repetition import MIN_REPEATS, RepetitionDetector
from youtu_llm.service.supervision.poison import MAX_LISTED, PoisonList, PoisonRequest
from youtu_llm.service.supervision.silence import SAFETY_FACTOR, SilenceLimit

Start = Callable[..., Daemon]


def test_retry_after_comes_from_how_long_answers_take() -> None:
    rate = Rate()
    assert rate.retry_after_s(num_live=4, num_seqs=4) == 1
    for _ in range(100):
        rate.measure(20.0)
    assert rate.retry_after_s(num_live=36, num_seqs=4) == 165  # 33 ahead of it, 4 at a time
    assert rate.retry_after_s(num_live=1000, num_seqs=1) == LONGEST_RETRY_S
    for _ in range(100):
        rate.measure(0.1)
    assert rate.retry_after_s(num_live=36, num_seqs=4) == 1


def test_a_flood_is_refused_before_its_bodies_are_read(start: Start) -> None:
    daemon = start(engine={"max_num_seqs": 1}, service={"queue_size": 0})
    daemon.wait_for("ready")
    with daemon.stream("!long", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        flood = daemon.http.post(
            "/chat", content=b"{", headers={"Content-Type": "application/json"}
        )
        assert flood.status_code == 429
        assert int(flood.headers["retry-after"]) >= 1


def test_somebody_who_listens_comes_before_a_batch_job(start: Start) -> None:
    daemon = start(engine={"max_num_seqs": 1})
    daemon.wait_for("ready")
    done: list[str] = []

    def ask(prompt: str, **options: Any) -> None:
        daemon.chat(prompt, **options)
        done.append(prompt)

    threads: list[threading.Thread] = []
    with daemon.stream("!long", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        for prompt, options in (
            ("batch", {"priority": "low"}),
            ("other", {}),
            ("voice", {"session": "car"}),
        ):
            threads.append(threading.Thread(target=ask, args=(prompt,), kwargs=options))
            threads[-1].start()
            number = 1 + len(threads)
            daemon.wait(lambda health, n=number: sum(map(health["queue"].get, TWO)) == n)
    for thread in threads:
        thread.join()
    assert done == ["voice", "other", "batch"]


TWO = ("running", "waiting")


def test_a_batch_job_that_waits_gives_its_place_to_others(start: Start) -> None:
    """One runs, two wait: the newest low one that waits is refused, and only for a higher one."""
    daemon = start(engine={"max_num_seqs": 1}, service={"queue_size": 2})
    daemon.wait_for("ready")
    with (
        daemon.stream("!long", max_new_tokens=4096, priority="low") as response,
        ThreadPoolExecutor() as pool,
    ):
        stream = events(response)  # let go, it would hang up
        next(stream)
        jobs = []
        for number in (2, 3):
            jobs.append(pool.submit(daemon.chat, f"job {number}", priority="low"))
            daemon.wait(lambda health, n=number: sum(map(health["queue"].get, TWO)) == n)
        assert daemon.chat("another", priority="low").status_code == 429
        hello = pool.submit(daemon.chat, "hello")
        evicted = jobs[1].result()
        assert (evicted.status_code, evicted.json()["error"]["code"]) == (429, "queue_full")
        assert int(evicted.headers["retry-after"]) >= 1
        response.close()
        assert hello.result().json()["text"] == "hello"
        assert jobs[0].result().json()["text"] == "job 2"


def test_an_answer_that_repeats_itself_is_ended_and_says_so(start: Start) -> None:
    daemon = start(bounds={"repetition_tokens": 32})
    daemon.wait_for("ready")
    done = daemon.chat("!long", max_new_tokens=4096).json()
    assert (done["finish_reason"], done["text"]) == ("repetition", "x" * 32)
    assert daemon.chat("a sentence that is said only once").json()["finish_reason"] == "stop"
    body = {"model": "y", "messages": [{"role": "user", "content": "!long"}]}
    (choice,) = daemon.http.post("/v1/chat/completions", json=body).json()["choices"]
    assert (choice["finish_reason"], choice["youtu_finish_reason"]) == (
        "stop",
        "repetition",
    )


@given(
    start=st.lists(st.integers(0, 3), max_size=60),
    phrase=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    num_tokens=st.integers(8, 40),
)
def test_repetition_is_found_when_it_is_there_and_only_then(
    start: list[int], phrase: list[int], num_tokens: int
) -> None:
    def repeats(ids: list[int]) -> bool:
        tail = ids[-num_tokens:]
        periods = range(1, num_tokens // MIN_REPEATS + 1)
        return len(tail) == num_tokens and any(tail[p:] == tail[:-p] for p in periods)

    detector, said = RepetitionDetector(num_tokens), []
    for token_id in start + phrase * 60:
        said.append(token_id)
        assert detector.push(token_id) == repeats(said)


def test_a_request_that_killed_twice_is_refused(start: Start) -> None:
    daemon = start(service={"max_restart_rate": "9/300"})
    for number in range(2):
        daemon.wait(lambda h, n=number: (h["state"], h["engine"]["restarts"]) == ("ready", n))
        assert daemon.chat("!crash 0").json()["error"]["code"] == "engine_error"
    daemon.wait(lambda health: health["state"] == "ready" and health["engine"]["restarts"] == 2)
    refused = daemon.chat("!crash 0", temperature=0.9)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "kills_engine")
    assert daemon.chat("hello").json()["text"] == "hello"
    assert daemon.health()["engine"]["restarts"] == 2


def test_the_refusal_ends_after_ten_minutes_and_the_list_is_bounded() -> None:
    now = 0.0
    poison = PoisonList(lambda: now)
    for _ in range(2):
        poison.record_crash([poison.check([1, 2])])
    with pytest.raises(PoisonRequest, match="600 s"):
        poison.check([1, 2])
    now = 600.0
    digest = poison.check([1, 2])
    poison.record_crash([digest])
    assert poison.check([1, 2]) == digest  # counted anew
    poison.record_crash(poison.check([3, n]) for n in range(2 * MAX_LISTED))
    assert len(poison._crashes) == MAX_LISTED


def test_a_long_prefill_gets_the_time_such_steps_took() -> None:
    silence = SilenceLimit()
    silence.heard(Heartbeat("idle"), now=0.0)
    assert silence.limit_s(20.0) == 20.0
    silence.heard(Heartbeat("step", step_tokens=512), now=1.0)
    assert silence.limit_s(20.0) == 20.0 + 51.2  # nothing measured yet
    silence.heard(Step(()), now=31.0)
    assert silence.limit_s(20.0) == 20.0
    silence.heard(Heartbeat("step", step_tokens=512), now=31.0)
    assert silence.limit_s(20.0) == pytest.approx(SAFETY_FACTOR * 30.0)
    silence.heard(Heartbeat("step", step_tokens=1), now=61.0)
    assert silence.limit_s(20.0) == 20.0


def test_a_slow_step_is_no_hang(start: Start) -> None:
    daemon = start("--prefill-s", "3.5", service={"engine_silence_s": 2.0})
    daemon.wait_for("ready")
    assert daemon.chat("x" * 600, max_new_tokens=700).json()["text"] == "x" * 600
    assert daemon.health()["engine"]["restarts"] == 0
