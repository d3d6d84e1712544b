"""`youtu eval gsm8k | cmath`: word problems that the running daemon answers."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from youtu_llm.tools.evals.tasks import Task

HELP = {
    "gsm8k": "ask the daemon English word problems (GSM8K) and count right answers",
    "cmath": "ask the daemon Chinese word problems (CMATH) and count right answers",
}
Command = Callable[..., argparse.ArgumentParser]


def add(command: Command, group: Any) -> None:
    """Add the subcommands to `group`, by `command(name, run, help, group)`."""
    for name, help in HELP.items():
        add_task(command(name, lambda args, name=name: _ask(args, name), help, group))


def positive(text: str) -> int:
    """An argument's type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options of a task that a running daemon answers; `ask` reads them."""
    parser.add_argument("--file", type=Path, metavar="FILE", help="the data set's file")
    parser.add_argument(
        "--against", metavar="HOST", help="another daemon to compare with: a socket or URL"
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=1,
        metavar="N",
        help="questions asked at the same time (%(default)s)",
    )
    add_common(parser, "questions (all)")


def add_common(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument("--limit", type=positive, metavar="N", help=f"how many {of}")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the data sets (YOUTU_EVAL_DATA, or ~/.local/share/youtu/evals)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="results, a JSON line each; the same command resumes from them (./eval-*.jsonl)",
    )


def _ask(args: argparse.Namespace, name: str) -> None:
    from youtu_llm.tools.evals import tasks

    ask(args, tasks.TASKS[name])


def ask(args: argparse.Namespace, task: Task) -> None:
    """Ask the daemons, keep every answer in a file and print the report."""
    from youtu_llm.tools.client import Daemon
    from youtu_llm.tools.evals import asking, datasets
    from youtu_llm.tools.evals.results import Results

    path = datasets.find(task.data_set, args.file or datasets.folder(args.data))
    questions = task.questions(path, args.limit)
    about = {
        "eval": task.name,
        "data": datasets.digest(path),
        "max_new_tokens": asking.NEW_TOKENS,
    }
    daemons = [Daemon.from_environ()]
    if args.against:
        is_url = "://" in args.against
        url = args.against if is_url else f"unix://{os.path.abspath(args.against)}"
        daemons.append(Daemon(url))
    models = [asking.Model.of(daemon) for daemon in daemons]
    out = args.out or Path(f"eval-{task.name}.jsonl")
    with Results(out, about) as results:
        try:
            asking.ask_all(
                models,
                questions,
                results,
                concurrency=args.concurrency,
                on_progress=Progress("answers"),
            )
        finally:
            asked = {question.id for question in questions}
            if rows := [row for row in results.rows if row["id"] in asked]:
                print(asking.report(rows, models[0].name))
                print(f"every answer: {out}")


class Progress:
    """A line on stderr, rewritten in place; in a log, a line a minute."""

    LOG_GAP_S = 60.0

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._shown = time.monotonic()
        self._begun = -1

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._begun < 0:
            self._begun = done  # what an earlier run left
        each_s = (now - self._started) / max(1, done - self._begun)
        left = f", {each_s * (total - done) / 60:.0f} min left" if done > self._begun else ""
        line = f"{done} of {total} {self._what}{left}"
        if sys.stderr.isatty():
            print(f"\r{line:<60}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or now - self._shown > self.LOG_GAP_S:
            self._shown = now
            print(line, file=sys.stderr, flush=True)
