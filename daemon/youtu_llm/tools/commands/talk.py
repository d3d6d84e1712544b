"""`youtu chat` and `youtu run`: ask once, or talk at the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_args

from youtu_llm.sampling import OPTIONS
from youtu_llm.tools.commands.models import add_license

Command = Callable[..., argparse.ArgumentParser]
Kinds = Mapping[str, Callable[[str], Any]]
PRIORITIES = ("high", "normal", "low")


def add(command: Command) -> None:
    """Add the commands, by `command(name, run, help)`."""
    sampling = {name: kind for name, (kind, _) in _sampling().items()}
    kinds: Kinds = {**sampling, "stop": str.split, "postprocess": _is_on, "priority": _priority}
    run = command("run", lambda args: _run(args, kinds), "download and start a model, then chat")
    run.add_argument("target", metavar="MODEL|profile:NAME", help="or a directory")
    run.add_argument(
        "--switch", action="store_true", help="replace the loaded model without asking"
    )
    add_license(run)
    chat = command(
        "chat", lambda args: _chat(args, kinds), "ask the daemon, once or in a conversation"
    )
    for parser in (run, chat):
        _add_request(parser)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="question; standard input is appended to it"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--session", default="", metavar="NAME", help="let the daemon keep the conversation"
    )
    parser.add_argument("--no-stream", action="store_true", help="print the answer when complete")
    parser.add_argument("--verbose", action="store_true", help="print the timings of each answer")
    group = parser.add_argument_group("sampling options (default: the live profile's)")
    for name, (kind, about) in _sampling().items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=about)
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer there; may be repeated"
    )
    group.add_argument("--priority", choices=PRIORITIES, help="scheduling priority of the request")
    group.add_argument(
        "--postprocess",
        action=argparse.BooleanOptionalAction,
        help="repair Chinese punctuation",
    )


def _sampling() -> dict[str, tuple[type, str]]:
    """The type and description of each option that is a number."""
    found: dict[str, tuple[type, str]] = {"max_new_tokens": (int, "Longest answer, in tokens.")}
    for name, (kind, option) in OPTIONS.items():
        found[name] = (get_args(kind) or (kind,))[0], option.description  # of `int | None`: int
    return found


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
