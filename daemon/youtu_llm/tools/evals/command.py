"""The `youtu eval` commands: their options, and what each puts together."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from youtu_llm import paths
from youtu_llm.errors import ModelError

TASKS = {
    "gsm8k": "ask the daemon English word problems (GSM8K) and count right answers",
    "cmath": "ask the daemon Chinese word problems (CMATH) and count right answers",
    "humaneval": "let the daemon write Python functions (HumanEval); their tests run in a sandbox",
}
DOMAINS = ("chinese", "english", "mathematics", "code")
Command = Callable[..., argparse.ArgumentParser]


def add(command: Command, group: Any, positive: Callable[[str], int]) -> None:
    """Add the subcommands to `group`, by `command(name, run, help, group)`."""
    kl = command("kl", _kl, "compare a model with the one it was made from, token by token", group)
    ppl = command("ppl", _ppl, "measure how well a model predicts held-out text", group)
    for parser in (kl, ppl):
        parser.add_argument("model", metavar="MODEL", help="a model's name or directory")
    kl.add_argument("reference", metavar="REFERENCE", help="the original's name or directory")
    for parser in (kl, ppl):
        parser.description = f"{parser.description}. {_OFFLINE}"
        parser.add_argument(
            "--domain",
            action="append",
            choices=DOMAINS,
            help="only this one; may be given again",
        )
        parser.add_argument("--file", type=Path, metavar="FILE", help="a text of yours instead")
        parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda")
        parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (all)")
        parser.add_argument(
            "--kernels",
            choices=("auto", "native", "reference"),
            default="auto",
            help="reference: plain torch, the weights' loss without the kernels' (%(default)s)",
        )
        _add_common(parser, positive, "documents of a domain (all)")
    for name, help in TASKS.items():
        parser = command(name, _ask, help, group)
        parser.set_defaults(task=name)
        parser.add_argument("--file", type=Path, metavar="FILE", help="the data set's file")
        parser.add_argument(
            "--against", metavar="HOST", help="another daemon, asked the same: a socket or URL"
        )
        parser.add_argument(
            "--concurrency",
            type=positive,
            default=1,
            metavar="N",
            help="questions a daemon gets at the same time (%(default)s)",
        )
        _add_common(parser, positive, "questions (all)")


_OFFLINE = (
    "The daemon does not give logits, so this loads the models itself, with the engine's own"
    " code and Python; a reference stays in memory beside the model, unquantised weights with 4"
    " bytes each on a CPU"
)


def _add_common(parser: argparse.ArgumentParser, positive: Callable[[str], int], of: str) -> None:
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
        help="results, a JSON line each; the same command goes on with them (else ./eval-*.jsonl)",
    )


def _ask(args: argparse.Namespace) -> None:
    from youtu_llm.tools.client import Daemon
    from youtu_llm.tools.evals import asking, datasets, tasks
    from youtu_llm.tools.evals.results import Results

    task = tasks.TASKS[args.task]
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


def _kl(args: argparse.Namespace) -> None:
    _measure(args, args.reference)


def _ppl(args: argparse.Namespace) -> None:
    _measure(args, None)


def _measure(args: argparse.Namespace, reference: str | None) -> None:
    from youtu_llm.cli import go_on_under_engine_python

    go_on_under_engine_python()
    from youtu_llm import manifest
    from youtu_llm.engine import backend as backends
    from youtu_llm.protocol import EngineConfig
    from youtu_llm.tools.evals import datasets, divergence, texts
    from youtu_llm.tools.evals.results import Results

    folders = [_model_dir(name) for name in (args.model, reference) if name]
    if args.file:
        held_out = texts.of_file(args.file, args.limit)
    else:
        held_out = texts.held_out(datasets.folder(args.data), args.domain or DOMAINS, args.limit)
    backend = backends.choose(
        EngineConfig(
            str(folders[0]), device=args.device, kernels=args.kernels, threads=args.threads or 0
        )
    )
    for note in backend.degraded:
        print(f"youtu: {note}", file=sys.stderr)
    kind = "kl" if reference else "ppl"
    about = {
        "eval": kind,
        "models": [[folder.name, manifest.identity(folder)] for folder in folders],
        "data": held_out.digest,
        "backend": backend.ops.name,
    }
    names = "-".join((kind, *(folder.name for folder in folders), *(args.domain or ())))
    out = args.out or Path(f"eval-{names}.jsonl")
    with Results(out, about) as results:
        try:
            divergence.run(
                folders[0],
                folders[1] if reference else None,
                held_out.documents,
                results,
                backend,
                on_progress=Progress("documents"),
            )
        finally:
            wanted = {document.id for document in held_out.documents}
            if rows := [row for row in results.rows if row["id"] in wanted]:
                print(divergence.report(rows, with_reference=bool(reference)))
                if len(rows) < len(wanted):
                    print(f"{len(rows)} of {len(wanted)} documents are measured")
                print(f"every document: {out} (computed by: {backend.ops.name})")


def _model_dir(name: str) -> Path:
    folder = paths.model_dir(name)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model: give a name that `youtu models` shows, or a directory with a"
            " slash, such as ./mine"
        )
    return folder


class Progress:
    """A line on stderr that is written over; in a log, a line a minute."""

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
