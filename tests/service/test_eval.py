"""`youtu eval` against real daemons with the fake engine, which repeats the question."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon

from youtu_llm.errors import InvalidRequest
from youtu_llm.tools import client
from youtu_llm.tools.evals import asking, tasks
from youtu_llm.tools.evals.results import Results

YOUTU = (sys.executable, "-c", "import sys, youtu_llm.cli as c; sys.exit(c.main())")
NUM_QUESTIONS = 12


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """Questions whose last number is what every second one's solution says."""
    return write_jsonl(
        tmp_path / "gsm8k_test.jsonl",
        [
            {"question": f"What is {n}?", "answer": f"It is.\n#### {n + n % 2}"}
            for n in range(NUM_QUESTIONS)
        ],
    )


def command(daemon: Daemon, *args: str) -> dict[str, Any]:
    host = {"YOUTU_HOST": f"unix://{daemon.socket}"}
    return {"args": [*YOUTU, "eval", *args], "env": os.environ | host, "text": True}


def ids(path: Path) -> list[str]:
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line)["id"] for line in whole.splitlines()[1:]]


def test_a_killed_run_goes_on(start: Callable[..., Daemon], gsm8k: Path, tmp_path: Path) -> None:
    daemon, out = start("--step-s", "0.005"), tmp_path / "r.jsonl"
    daemon.wait_for("ready")
    run = command(daemon, "gsm8k", "--file", str(gsm8k), "--out", str(out))
    process = subprocess.Popen(**run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(ids(out)) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ids(out)
    assert 3 <= len(before) < NUM_QUESTIONS

    shown = subprocess.run(**run, capture_output=True, check=True).stdout
    assert ids(out)[: len(before)] == before
    assert sorted(ids(out), key=int) == [str(n) for n in range(NUM_QUESTIONS)]
    assert "50.00 [25.38, 74.62]" in shown, "6 of 12, by Wilson"

    told = subprocess.run(**command(daemon, "gsm8k", "--file", "nowhere"), capture_output=True)
    assert told.returncode == 1
    assert "openai/grade-school-math" in told.stderr


def test_two_daemons_are_paired(start: Callable[..., Daemon], gsm8k: Path, tmp_path: Path) -> None:
    one, other = start(engine={"max_num_seqs": 3}), start(engine={"max_num_seqs": 3})
    for daemon in (one, other):
        daemon.wait_for("ready")
    questions = tasks.TASKS["gsm8k"].questions(gsm8k, 8)
    models = [asking.Model.of(client.Daemon(f"unix://{d.socket}")) for d in (one, other)]
    with Results(tmp_path / "r.jsonl", {}) as results:
        asking.ask_all(models, questions, results, concurrency=3)
        asked = {(row["model"], row["id"]) for row in results.rows}
        assert asked == {(model.name, question.id) for model in models for question in questions}
        assert {row["finish_reason"] for row in results.rows} == {"stop"}
        with pytest.raises(InvalidRequest, match="could not be distinguished"):
            asking.ask_all([models[0], models[0]], questions, results, concurrency=1)
    assert "+0.00 [" in asking.report(results.rows, models[0].name)
    changed = dataclasses.replace(models[0], digest="another")
    with (
        Results(tmp_path / "r.jsonl", {}) as results,
        pytest.raises(InvalidRequest, match="when that was another model"),
    ):
        asking.ask_all([changed], questions, results, concurrency=1)


def test_an_answer_that_fails_ends_the_run(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """What was answered before it stays, and what was begun after it is hung up on."""
    daemon = start()
    daemon.wait_for("ready")
    good = tasks.Question("good", "What is 5?", tasks.TASKS["gsm8k"].question(0, GOLD).judge)
    bad = tasks.Question("bad", "!oom 3", good.judge)
    long = tasks.Question("long", "!long", good.judge)
    model = asking.Model.of(client.Daemon(f"unix://{daemon.socket}"))
    with Results(tmp_path / "r.jsonl", {}) as results:
        with pytest.raises(client.Refused, match="out of memory"):
            asking.ask_all([model], [good, bad, long], results, concurrency=1)
        assert [(row["id"], row["right"]) for row in results.rows] == [("good", True)]
    daemon.wait(lambda health: health["queue"]["running"] == 0)


GOLD = {"question": "What is 5?", "answer": "#### 5"}


def test_differences_are_counted_by_question() -> None:
    def row(model: str, id: int, right: bool) -> dict[str, Any]:
        return {"model": model, "id": str(id), "right": right, "finish_reason": "stop"}

    rows = [row("int4", id, id < 10) for id in range(21)]
    rows += [row("fp16", id, 1 <= id < 17) for id in range(21)]  # lost 10..16, gained 0
    shown = asking.report(rows, "int4")
    assert "int4 less fp16: -28.57 [-50.84, -1.34] points over 21 paired questions" in shown
    assert "only the first right 1, only the second 7" in shown


def test_chinese_goldens(tmp_path: Path) -> None:
    record = {"input": "几分之几？", "golden": "25%"}
    path = write_jsonl(tmp_path / "cmath_dev.jsonl", [record])
    (question,) = tasks.TASKS["cmath"].questions(path)
    assert question.judge("所以是\\boxed{\\frac{1}{4}}。").passed
    assert question.judge("所以是\\boxed{25}。").why == "25, not 1/4"


def test_a_percent_sign_that_the_golden_leaves_out() -> None:
    question = tasks.TASKS["gsm8k"].question(
        0, {"question": "What percentage?", "answer": "#### 5"}
    )
    assert question.judge("That is \\boxed{5\\%}.").passed
    assert question.judge("That is \\boxed{50\\%}.").why == "1/2, not 5"
