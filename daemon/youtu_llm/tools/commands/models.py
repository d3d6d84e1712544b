"""The models of this machine: `youtu pull`, `list`, `show`, `rm` and `cp`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from youtu_llm import paths
from youtu_llm.errors import YoutuError

if TYPE_CHECKING:
    from youtu_llm.tools.catalogue import CatalogueEntry

Command = Callable[..., argparse.ArgumentParser]


def add(command: Command) -> None:
    """Add the commands, by `command(name, run, help, aliases=...)`."""
    pull = command("pull", _pull, "download a model")
    pull.add_argument("name", metavar="MODEL")
    pull.add_argument(
        "--keep-download", action="store_true", help="leave the raw download in MODELS/.partial"
    )
    add_license(pull)
    listing = command("list", _list, "list the models on this machine", aliases=("ls", "models"))
    listing.add_argument("--available", action="store_true", help="list what can be pulled instead")
    show = command("show", _show, "show a model's details")
    show.add_argument("name", metavar="MODEL", help="a name, or a directory with a slash")
    remove = command("rm", _rm, "remove models from this machine")
    remove.add_argument("names", nargs="+", metavar="MODEL")
    copy = command(
        "cp", _cp, "copy a model under another name, its weights hard-linked, not copied"
    )
    copy.add_argument("name", metavar="MODEL")
    copy.add_argument("to", metavar="NAME")


def add_license(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-license",
        action="store_true",
        help="accept the licence of the model, where that is needed",
    )


def _pull(args: argparse.Namespace) -> None:
    from youtu_llm.tools import engine_python

    engine_python.switch()
    from youtu_llm.tools import importer, store

    folder, entry = paths.models_dir(), store.catalogue().get(args.name)
    if entry is not None and not importer.is_sound(folder / args.name):
        accept(entry, given=args.accept_license)
    path = store.pull(
        args.name, models_dir=folder, keep_download=args.keep_download, accept_license=True
    )
    print(path)


def accept(entry: CatalogueEntry, *, given: bool) -> None:
    """Ask for a licence that must be accepted, unless the option has. Raises ModelError."""
    question = f"Its licence is «{entry.license}», to be read at {entry.sources[0]}. Accept it?"
    if entry.must_accept and not given and not (sys.stdin.isatty() and confirm(question)):
        raise entry.not_accepted()


def confirm(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _list(args: argparse.Namespace) -> None:
    from youtu_llm.tools import status

    print(_available() if args.available else _here(status.table))


def _here(table: Callable[..., str]) -> str:
    from youtu_llm.tools import model_dir

    folder = paths.models_dir()
    models = model_dir.list_models(folder)
    for info in models:
        if info.problem:
            print(f"youtu: {info.problem}", file=sys.stderr)
    if not models:
        return f"No models in {folder}: `youtu pull NAME` gets one."
    rows = [(info.name, info.quantization, _gb(info.num_bytes), info.license) for info in models]
    return table(("NAME", "WEIGHTS", "SIZE", "LICENCE"), rows)


def _available() -> str:
    from youtu_llm.tools import status
    from youtu_llm.tools.catalogue import catalogue

    folder = paths.models_dir()
    rows = [
        (
            name,
            _gb(entry.wanted.num_bytes),
            _gb(entry.model_bytes),
            "yes" if (folder / name).is_dir() else "no",
            entry.license + (" (needs --accept-license)" if entry.must_accept else ""),
        )
        for name, entry in catalogue().items()
    ]
    return status.table(("NAME", "DOWNLOAD", "SIZE", "HERE", "LICENCE"), rows)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _show(args: argparse.Namespace) -> None:
    from youtu_llm.tools import model_facts

    print(model_facts.show(args.name))


def _rm(args: argparse.Namespace) -> None:
    from youtu_llm.tools import model_dir
    from youtu_llm.tools.client import Daemon, Unreachable

    try:
        live = Daemon.from_environ().call("GET", "/health", also=(503,))
    except Unreachable:
        live = {}
    for name in args.names:
        if live.get("model") == name and live.get("state") != "failed":
            raise YoutuError(f"{name} is live: `youtu stop` first, or make another model live")
        model_dir.remove(paths.models_dir(), name)
        print(f"removed {name}")


def _cp(args: argparse.Namespace) -> None:
    from youtu_llm.tools import model_dir

    print(model_dir.copy(paths.models_dir(), args.name, args.to))
