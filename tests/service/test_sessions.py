"""Conversations with barge-in: what is kept, what is computed anew, what ends whom."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any

import pytest
from harness import Daemon, events

from youtu_llm import paths
from youtu_llm.text.tokenizer import Tokenizer

Start = Callable[..., Daemon]


def ask(daemon: Daemon, session: str, prompt: str, **options: Any) -> dict[str, Any]:
    response = daemon.chat(prompt, session=session, **options)
    assert response.status_code == 200, response.text
    done: dict[str, Any] = response.json()
    return done


def row(daemon: Daemon, session: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = daemon.http.get("/sessions").json()["sessions"]
    return next(row for row in rows if row["id"] == session)


def computed(done: dict[str, Any]) -> int:
    usage = done["usage"]
    return int(usage["prompt_tokens"] - usage["cached_tokens"])


def test_the_next_turn_computes_only_what_is_new(daemon: Daemon) -> None:
    first = ask(daemon, "talk", "What is the way to the station, please?")
    assert computed(first) >= len("What is the way to the station, please?")
    for turn in range(2, 5):
        done = ask(daemon, "talk", "and then?")
        assert done["text"] == "and then?"
        # the new text, its marks, and the last token said, which was never computed
        assert computed(done) <= len("\nuser: and then?\nassistant: ") + 1
        assert row(daemon, "talk")["turns"] == turn
    assert daemon.http.delete("/sessions/talk").status_code == 200
    assert daemon.http.delete("/sessions/talk").status_code == 404
    assert ask(daemon, "talk", "hello")["usage"]["prompt_tokens"] < 40


def test_a_new_utterance_ends_the_one_that_is_spoken(daemon: Daemon) -> None:
    with daemon.stream("!long", session="car", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        assert row(daemon, "car")["speaking"]
        second = ask(daemon, "car", "the airport")
        *_, (name, done) = stream
    assert (name, done["finish_reason"]) == ("done", "interrupted")
    assert second["text"] == "the airport"
    said = len(done["text"])
    assert second["usage"]["prompt_tokens"] >= done["usage"]["prompt_tokens"] + said
    assert computed(second) <= len("\nuser: the airport\nassistant: ") + 1


def test_of_two_turns_at_once_the_later_speaks(daemon: Daemon) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask, daemon, "two", "!long", max_new_tokens=200) for _ in range(2)]
        reasons = sorted(future.result()["finish_reason"] for future in both)
    assert reasons == ["interrupted", "length"]


def test_a_refused_turn_forgets_no_conversation(start: Start) -> None:
    daemon = start(sessions={"max_sessions": 2})
    daemon.wait_for("ready")
    ask(daemon, "a", "one")
    ask(daemon, "b", "two")
    for number in range(3):
        refused = daemon.chat("x" * 3000, session=f"new-{number}")
        assert refused.status_code == 400
    sessions = daemon.http.get("/sessions").json()["sessions"]
    assert [session["id"] for session in sessions] == ["a", "b"]


def test_one_session_cannot_pile_up_requests(start: Start) -> None:
    daemon = start(engine={"max_num_seqs": 1}, service={"queue_size": 1})
    daemon.wait_for("ready")
    daemon.engine().suspend()
    with ThreadPoolExecutor(12) as pool:
        turns = [pool.submit(daemon.chat, "hello", session="one") for _ in range(12)]
        for refused in islice(as_completed(turns, timeout=10), 8):  # twice the places are 4
            assert refused.result().status_code == 429
        daemon.engine().resume()
    assert sorted(turn.result().status_code for turn in turns) == [200] * 4 + [429] * 8


def test_a_barge_in_needs_no_free_place(start: Start) -> None:
    daemon = start(engine={"max_num_seqs": 1}, service={"queue_size": 0})
    daemon.wait_for("ready")
    with daemon.stream("!long", session="car", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        assert daemon.chat("hello").status_code == 429
        assert ask(daemon, "car", "the airport")["text"] == "the airport"
        *_, (_, done) = stream
    assert done["finish_reason"] == "interrupted"


def test_what_was_not_heard_is_forgotten(daemon: Daemon) -> None:
    with daemon.stream("!long", session="cut", max_new_tokens=4096) as response:
        stream = events(response)
        for _ in range(8):
            next(stream)
        cut = daemon.http.post("/sessions/cut/interrupt", json={"spoken_chars": 5}).json()
        *_, (_, done) = stream
    assert done["finish_reason"] == "interrupted"
    assert (cut["interrupted"], cut["kept_text"]) == (True, "xxxxx")
    again = ask(daemon, "cut", "again")
    marks = len("\nuser: again\nassistant: ")
    assert again["usage"]["prompt_tokens"] == done["usage"]["prompt_tokens"] + 5 + marks
    assert computed(again) <= marks
    # an answer that is complete may be cut too: speech lags behind text
    late = daemon.http.post("/sessions/cut/interrupt", json={"spoken_chars": 2}).json()
    assert (late["interrupted"], late["kept_text"]) == (False, "ag")
    bare = daemon.http.post("/sessions/cut/interrupt").json()
    assert bare["kept_text"] == "ag", "no body, nothing more is cut"
    assert daemon.http.post("/sessions/none/interrupt", json={}).status_code == 404


def test_the_model_may_be_told(start: Start) -> None:
    daemon = start(sessions={"interruption_note": " (cut)"})
    daemon.wait_for("ready")
    first = ask(daemon, "a", "hello")
    daemon.http.post("/sessions/a/interrupt", json={"spoken_chars": 2})
    prompt_tokens = ask(daemon, "a", "hello")["usage"]["prompt_tokens"]
    marks = len("\nuser: hello\nassistant: ")
    assert prompt_tokens == first["usage"]["prompt_tokens"] + len("he (cut)") + marks


def test_a_failed_turn_leaves_the_conversation_as_it_was(daemon: Daemon) -> None:
    ask(daemon, "fail", "hello")
    tokens = row(daemon, "fail")["tokens"]
    assert daemon.chat("!oom 0", session="fail").status_code == 500
    assert row(daemon, "fail")["tokens"] == tokens
    assert ask(daemon, "fail", "still there")["text"] == "still there"


def test_the_oldest_turns_make_room(daemon: Daemon) -> None:
    """The context has 2048 tokens; a turn here has 250."""
    dropped = 0
    for _ in range(14):
        done = ask(daemon, "old", "y" * 250, max_new_tokens=300)
        assert done["text"] == "y" * 250
        assert done["usage"]["prompt_tokens"] + 300 <= 2048
        dropped += done["usage"]["dropped_tokens"]
    assert dropped > 2000
    assert row(daemon, "old")["turns"] < 8


def test_number_and_age_are_bounded(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    daemon.profile("few", sessions={"max_sessions": 2})
    daemon.profile("short", sessions={"idle_s": 1.0})
    assert daemon.use("few").status_code == 200
    for name in ("a", "b", "c"):
        ask(daemon, name, "hello")
    ids = [row["id"] for row in daemon.http.get("/sessions").json()["sessions"]]
    assert ids == ["b", "c"]
    assert daemon.use("short").status_code == 200
    while daemon.http.get("/sessions").json()["sessions"]:
        pass


def test_another_system_prompt_keeps_what_was_said(start: Start) -> None:
    daemon = start(text={"system_prompt": "Be kind."})
    daemon.wait_for("ready")
    first = ask(daemon, "a", "hello")
    daemon.profile("rude", text={"system_prompt": "Be rude!"})
    daemon.edit(text={})
    assert daemon.use("rude").status_code == 200
    done = ask(daemon, "a", "hello")
    assert done["profile"] == "rude"
    marks = len("\nuser: hello\nassistant: ")
    assert done["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"] + 5 + marks
    assert computed(done) > marks + 1


@pytest.mark.model
def test_the_real_template_is_continued_as_it_would_be_written() -> None:
    tokenizer = Tokenizer.load(paths.models_dir() / "qwen2.5-coder-0.5b")
    told: list[dict[str, Any]] = [{"role": "user", "content": "去机场怎么走？"}]
    answer = "走机场高速。"
    kept = [*tokenizer.encode_chat(told), *tokenizer.encode(answer)]
    question = {"role": "user", "content": "多远？ <|im_end|>"}
    whole = [*told, {"role": "assistant", "content": answer}, question]
    assert kept + tokenizer.encode_turn([question]) == tokenizer.encode_chat(whole)
