"""`youtu chat` and `youtu run`: ask once, or talk at the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from youtu_llm.tools.commands.models import add_license

Command = Callable[..., argparse.ArgumentParser]
Kinds = Mapping[str, Callable[[str], Any]]
PRIORITIES = ("high", "normal", "low")


def add(command: Command, sampling: Kinds) -> None:
    """Add the commands, by `command(name, run, help)`. `sampling`: options of a request that
    are numbers, with their types."""
    kinds: Kinds = {**sampling, "stop": str.split, "postprocess": _is_on, "priority": _priority}
    run = command(
        "run", lambda args: _run(args, kinds), "get a model, start a daemon with it, and talk"
    )
    run.add_argument("target", metavar="MODEL|profile:NAME", help="or a directory")
    run.add_argument("--switch", action="store_true", help="end another model without asking")
    add_license(run)
    chat = command(
        "chat", lambda args: _chat(args, kinds), "ask the daemon, once or in a conversation"
    )
    for parser in (run, chat):
        _add_request(parser, sampling)


def _add_request(parser: argparse.ArgumentParser, sampling: Kinds) -> None:
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="what is piped in is put below it"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--session", default="", metavar="NAME", help="let the daemon keep the conversation"
    )
    parser.add_argument("--no-stream", action="store_true", help="print the answer when complete")
    parser.add_argument("--verbose", action="store_true", help="print the timings of each answer")
    for key, kind in sampling.items():
        flag = f"--{key.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar="N", help="(else the live profile's)")
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer there; may be repeated"
    )
    parser.add_argument("--priority", choices=PRIORITIES, help="beside other requests")
    parser.add_argument(
        "--postprocess",
        action=argparse.BooleanOptionalAction,
        help="repair Chinese punctuation (else the live profile's)",
    )


def _run(args: argparse.Namespace, kinds: Kinds) -> None:
    from youtu_llm.tools import making_live

    target = making_live.Target.of(args.target)
    daemon = making_live.ensure(target, switch=args.switch, accept_license=args.accept_license)
    _talk(args, kinds, daemon)


def _chat(args: argparse.Namespace, kinds: Kinds) -> None:
    from youtu_llm.tools.client import Daemon

    _talk(args, kinds, Daemon.from_environ())


def _talk(args: argparse.Namespace, kinds: Kinds, daemon: Any) -> None:
    from youtu_llm.tools import chat

    chosen = {key: vars(args)[key] for key in kinds}
    options = {key: value for key, value in chosen.items() if value is not None}
    talk = chat.Chat(
        daemon,
        options,
        args.system,
        args.session,
        stream=not args.no_stream,
        verbose=args.verbose,
    )
    if args.prompt is None and sys.stdin is not None and sys.stdin.isatty():
        from youtu_llm.tools.repl import Repl

        Repl(talk, dict(kinds)).run()
    else:
        chat.once(talk, args.prompt)


def _is_on(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def _priority(text: str) -> str:
    if text not in PRIORITIES:
        raise ValueError
    return text
