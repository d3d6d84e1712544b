"""`youtu eval gsm8k | cmath | humaneval`: asks running daemons, greedily, and counts.

The results file holds the answers of every model that was asked, each under the name its
daemon gives it. So two models are compared in one run, with two daemons, or in two runs, with
one daemon that serves first the one and then the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from youtu_llm.errors import InvalidRequest
from youtu_llm.tools.client import Daemon, Refused, Unreachable
from youtu_llm.tools.evals import intervals
from youtu_llm.tools.evals.results import Results, Row
from youtu_llm.tools.evals.tasks import Question
from youtu_llm.tools.status import table

NEW_TOKENS = 512  # at 256 most worked solutions are cut
GREEDY = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "stop": [],
    "postprocess": False,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A daemon and the model it serves."""

    daemon: Daemon
    name: str
    digest: str | None  # names its files
    profile: str  # the live one: its system prompt is part of every question

    @classmethod
    def of(cls, daemon: Daemon) -> Model:
        try:
            model = daemon.call("GET", "/v1/models")["data"][0]
            profile = daemon.call("GET", "/health")["profile"]
            return cls(daemon, model["id"], model["meta"]["digest"], profile)
        except (LookupError, TypeError) as error:
            raise Unreachable(f"{daemon.host} does not report which model it serves") from error


def ask_all(
    models: Sequence[Model],
    questions: Sequence[Question],
    results: Results,
    *,
    concurrency: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Get what `results` lacks, `concurrency` answers of each model at a time.

    Raises what the daemon said; the answers until then are kept.
    """
    if len({model.name for model in models}) < len(models):
        raise InvalidRequest(
            f"both daemons serve {models[0].name}: their answers could not be distinguished"
        )
    by_name = {model.name: model for model in models}
    for row in results.rows:
        now = by_name.get(row["model"])
        if now and (row["digest"], row["profile"]) != (now.digest, now.profile):
            what = "another model" if row["digest"] != now.digest else "another profile"
            raise InvalidRequest(
                f"{results.path} has answers of {row['model']} when that was {what}"
                f" (profile {row['profile']}; now {now.profile}): choose another file with --out,"
                " or remove it"
            )
    known = {(row["model"], row["id"]) for row in results.rows}
    # Question by question: after a kill the results so far can be paired.
    jobs = [(m, q) for q in questions for m in models if (m.name, q.id) not in known]
    total = len(models) * len(questions)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(concurrency * len(models))
    try:
        running = {pool.submit(_answer, model, question, stopped) for model, question in jobs}
        on_progress(total - len(running), total)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            # Failures come last: they raise after the other answers are kept.
            for future in sorted(done, key=lambda f: f.exception() is not None):
                results.add(future.result())
            on_progress(total - len(running), total)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _answer(model: Model, question: Question, stopped: threading.Event) -> Row:
    body = {"prompt": question.prompt, "max_new_tokens": NEW_TOKENS, "stream": True, **GREEDY}
    done = _ask(model.daemon, body, stopped)
    verdict = question.judge(done["text"])
    return {
        "id": question.id,
        "model": model.name,
        "digest": model.digest,
        "right": verdict.passed,
        "why": verdict.why,
        "finish_reason": done["finish_reason"],
        "tokens": done["usage"]["completion_tokens"],
        "profile": done["profile"],
        "text": done["text"],
    }


def _ask(daemon: Daemon, body: Any, stopped: threading.Event) -> Any:
    """The `done` event of one answer; disconnects once `stopped`."""
    with closing(daemon.events("/chat", body)) as events:
        for event, data in events:
            if event == "done":
                return data
            if event == "error":
                raise Refused(data["error"]["message"], code=data["error"]["code"])
            if stopped.is_set():
                break
    raise Unreachable("the daemon disconnected before the answer was complete")


def report(rows: Iterable[Row], first: str) -> str:
    """Accuracy of every model, and of each other one against `first`, pairwise."""
    by_model: dict[str, dict[str, Row]] = {first: {}}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["id"]] = row
    cells = [_accuracy(name, answers) for name, answers in by_model.items() if answers]
    head = ("MODEL", "QUESTIONS", "RIGHT", "%, 95 % INTERVAL (WILSON)", "CUT", "OTHERWISE ENDED")
    lines = [table(head, cells)]
    ours = by_model.pop(first)
    lines += [_difference(first, ours, name, theirs) for name, theirs in by_model.items()]
    return "\n".join(lines)


def _accuracy(name: str, answers: dict[str, Row]) -> tuple[object, ...]:
    reasons = [row["finish_reason"] for row in answers.values()]
    right = sum(row["right"] for row in answers.values())
    cut = reasons.count("length")
    others = len(reasons) - cut - reasons.count("stop")
    return name, len(answers), right, intervals.share(right, len(answers)).percent(), cut, others


def _difference(first: str, ours: dict[str, Row], other: str, theirs: dict[str, Row]) -> str:
    shared = ours.keys() & theirs.keys()
    if not shared:
        return f"{first} and {other} have no question in common yet"
    gained = sum(ours[id]["right"] and not theirs[id]["right"] for id in shared)
    lost = sum(theirs[id]["right"] and not ours[id]["right"] for id in shared)
    points = intervals.paired_difference(gained, lost, len(shared)).percent(signed=True)
    return (
        f"{first} less {other}: {points} points over {len(shared)} paired questions"
        f" (only the first right {gained}, only the second {lost};"
        " 95 % interval: adjusted Wald, Bonett and Price 2012)"
    )
