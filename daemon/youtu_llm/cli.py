"""The `youtu` command. Each subcommand imports what it needs inside its function, so that
`youtu --help` and the client commands start at once.

Exit status: 0 done, 1 an error (a message on stderr), 2 wrong usage, 3 not ready (`status`),
78 a wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from youtu_llm import __version__, paths
from youtu_llm.errors import ConfigError, YoutuError
from youtu_llm.tools.commands import completion, daemon, models, talk
from youtu_llm.tools.commands.parser import Parser, guide
from youtu_llm.tools.evals import command as evals
from youtu_llm.tools.quantize import command as quantize

if TYPE_CHECKING:
    from youtu_llm.config import Loaded

Run = Callable[[argparse.Namespace], "int | None"]

NOT_READY = 3


def main(argv: list[str] | None = None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # packaging/main.py removes it
    _open_standard_streams()
    try:
        args = _parser().parse_args(argv)
        status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(f"youtu: the configuration is wrong:\n{error.message}", file=sys.stderr)
        return error.exit_status
    except YoutuError as error:
        print(f"youtu: {error.message}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader of the pipe has ended
            print(f"youtu: {error.strerror or error}{_named(error)}", file=sys.stderr)
        # Python flushes stdout again at exit: discard that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _named(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _open_standard_streams() -> None:
    """A closed one (`2>&-`) would be the next file or socket that is opened. What a terminal's
    encoding lacks is shown as `?`."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as sys
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("youtu", description="A language model on this machine.")
    parser.set_defaults(run=guide)
    parser.add_argument("--version", action="version", version=f"youtu {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: Run, help: str, to: Any = commands, aliases: Sequence[str] = ()
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = to.add_parser(
            name, help=help, description=help, aliases=aliases
        )
        made.set_defaults(run=run)
        return made

    def group(name: str, help: str) -> Any:
        made = commands.add_parser(name, help=help, description=help)
        return made.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = command("serve", _serve, "run the daemon")
    _add_settings(serve)
    talk.add(command)
    command("ps", _ps, "list the running requests")
    status = command("status", _status, "show the daemon's state; exit status 3 unless ready")
    status.add_argument("--json", action="store_true", help="print the JSON of /health")

    configs = group("config", "show and check the configuration")
    check = command("check", _config_check, "check the configuration and every profile", configs)
    show = command("show", _config_show, "print each value and its origin", configs)
    command("schema", _config_schema, "print the JSON schema, for editors", configs)

    profiles = group("profile", "list, show and switch scenario profiles")
    ls = command("ls", _profile_ls, "list the profiles", profiles)
    show_profile = command("show", _profile_show, "print the file of a profile", profiles)
    show_profile.add_argument("name", nargs="?", metavar="PROFILE", help="(default: the live one)")
    use = command("use", _profile_use, "switch to a profile, now and for later starts", profiles)
    use.add_argument("name", metavar="PROFILE")
    for reader in (serve, check, show, ls, show_profile, use):
        reader.add_argument(
            "--config", type=Path, metavar="FILE", help=f"config file ({paths.config_file()})"
        )

    models.add(command)
    imports = command("import", _import, "convert a .gguf file or a model directory")
    imports.add_argument("path", type=Path, metavar="PATH")
    imports.add_argument("--name", help="name of the new model (default: that of PATH)")
    imports.add_argument(
        "--dtype",
        choices=("int4", "float16", "bfloat16", "float32"),
        default="int4",
        help="data type of the weights (%(default)s)",
    )
    quantize.add(command("quantize", quantize.run, "quantize a model to INT4, calibrated on text"))

    setup = command(
        "setup-engine", _setup_engine, "find or create a Python with torch for the engine"
    )
    setup.add_argument(
        "--wheels", type=Path, metavar="DIR", help="install from this folder, offline"
    )
    setup.add_argument("--index-url", default="", metavar="URL", help="package index for torch")
    setup.add_argument(
        "--path", type=Path, metavar="DIR", help="where to create it (/opt/youtu/engine)"
    )
    setup.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    setup.add_argument("--dry-run", action="store_true", help="only print what it would do")
    daemon.add(command)
    _add_bench(command("bench", _bench, "measure the running daemon from the client side"))
    completion.add(command, parser)
    evals.add(command, group("eval", "measure the quality of a model's answers"))
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Flags that set settings. `dest` is the dotted key, absent unless the flag is given."""

    def add(flag: str, key: str, help: str, **kwargs: Any) -> None:
        parser.add_argument(flag, dest=key, help=help, default=argparse.SUPPRESS, **kwargs)

    add("--profile", "profile", "scenario profile", metavar="PROFILE")
    add("--model", "model.name", "a model's name or directory", metavar="MODEL")
    add(
        "--kv-cache-max-page",
        "model.kv_cache_max_page",
        "maximum number of KV cache pages",
        type=int,
        metavar="N",
    )
    add("--device", "engine.device", "auto, cpu or cuda", metavar="NAME")
    add("--threads", "engine.threads", "CPU threads of the engine", type=int, metavar="N")
    add("--socket", "service.socket", "path of the Unix socket", type=os.path.abspath)
    add("--host", "service.host", "TCP address to listen on")
    add("--port", "service.port", "TCP port; 0: none", type=int, metavar="N")
    add("--streaming", "text.streaming", "stream answers", action=argparse.BooleanOptionalAction)
    add("--no-cache", "cache", "do not write caches to disk", action="store_false")
    add(
        "--enable-long-context",
        "context.long_context",
        "extend the model's context by RoPE scaling",
        action="store_true",
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    def number(flag: str, default: int, help: str) -> None:
        parser.add_argument(
            flag, type=evals.positive, default=default, metavar="N", help=f"{help} (%(default)s)"
        )

    number("--requests", 100, "number of requests")
    number("--prompt-tokens", 512, "tokens of a prompt")
    number("--new-tokens", 128, "tokens of an answer")
    number("--concurrency", 1, "requests at the same time")
    parser.add_argument(
        "--against", metavar="URL", help="another server; the two are measured alternately"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot them to FILE (.png)")


def _serve(args: argparse.Namespace) -> int | None:
    import logging

    loaded = _load(args)
    from youtu_llm.service.app import run

    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s")
    return run(loaded)


def _ps(args: argparse.Namespace) -> None:
    from youtu_llm.tools import status
    from youtu_llm.tools.client import Daemon

    print(status.requests(Daemon.from_environ().call("GET", "/requests")["requests"]))


def _status(args: argparse.Namespace) -> int:
    import json

    from youtu_llm.tools import status
    from youtu_llm.tools.client import Daemon, NothingListens

    try:
        report = Daemon.from_environ().call("GET", "/health", also=(503,))
    except NothingListens as error:
        print(f"youtu: {error.message}", file=sys.stderr)
        return NOT_READY
    print(json.dumps(report, ensure_ascii=False) if args.json else status.health(report))
    return 0 if report.get("state") == "ready" else NOT_READY


def _config_check(args: argparse.Namespace) -> None:
    from youtu_llm.tools import configure

    loaded = _load(args)
    names = configure.check(loaded)
    file = loaded.sources.config_file
    source = file if file and file.exists() else "no config file, the defaults"
    print(f"ok: {source}; profile {loaded.settings.profile}; also valid: {', '.join(names)}")


def _config_show(args: argparse.Namespace) -> None:
    from youtu_llm.tools import configure

    print("\n".join(configure.show(_load(args))))


def _config_schema(args: argparse.Namespace) -> None:
    from youtu_llm.tools import configure

    print(configure.schema())


def _profile_ls(args: argparse.Namespace) -> None:
    from youtu_llm.tools import configure
    from youtu_llm.tools.client import Daemon, Unreachable

    try:
        live = Daemon.from_environ().call("GET", "/health", also=(503,)).get("profile")
    except Unreachable:
        live = None
    print("\n".join(configure.list_profiles(_load(args), live)))


def _profile_show(args: argparse.Namespace) -> None:
    from youtu_llm.tools import configure

    print(configure.show_profile(_load(args), args.name), end="")


def _profile_use(args: argparse.Namespace) -> None:
    from youtu_llm.tools import configure
    from youtu_llm.tools.client import RELOAD_TIMEOUT_S, Daemon, NothingListens, Refused

    vars(args)["profile"] = args.name  # checked like a flag before it is written
    file = _load(args).sources.config_file
    assert file is not None
    undo = configure.set_value(file, "profile", args.name)
    print(f"{file}: profile: {args.name}")
    daemon = Daemon.from_environ()
    try:
        live = daemon.call("POST", "/reload", timeout_s=RELOAD_TIMEOUT_S)["name"]
    except NothingListens:
        print("No daemon is running: the profile takes effect at the next start.")
        return
    except Refused as error:
        if error.code != "switch_failed":
            raise
        undo()
        raise YoutuError(f"{error.message}. {file} was not changed") from error
    if live != args.name:
        raise YoutuError(
            f"the daemon on {daemon.host} is still on the profile {live}: it reads another config"
            " file, or its --profile flag or YOUTU_PROFILE has precedence."
            f" {args.name} (saved in {file}) applies once they are removed"
        )
    print(f"The profile {live} is live.")


def _import(args: argparse.Namespace) -> None:
    from youtu_llm.tools import engine_python

    engine_python.switch()
    from youtu_llm.tools import importer

    options = {} if args.dtype == "int4" else {"dtype": args.dtype}
    print(
        importer.import_model(
            args.path,
            models_dir=paths.models_dir(),
            name=args.name,
            quantize=args.dtype == "int4",
            **options,
        )
    )


def _bench(args: argparse.Namespace) -> None:
    import asyncio

    from youtu_llm.tools import bench
    from youtu_llm.tools.client import Daemon

    daemon = Daemon.from_environ()
    load = bench.Load(args.requests, args.prompt_tokens, args.new_tokens, args.concurrency)
    urls = [daemon.host, *([args.against] if args.against else [])]
    reports = asyncio.run(bench.run(urls, load, daemon.api_key))
    print(bench.as_table(reports))
    if args.json:
        args.json.write_text(bench.as_json(reports) + "\n", encoding="utf-8")
    if args.plot:
        bench.plot(reports, args.plot)


def _setup_engine(args: argparse.Namespace) -> None:
    from youtu_llm.tools import setup_engine

    setup_engine.setup(
        _load(args),
        (args.path or setup_engine.DEFAULT_PATH).absolute(),
        wheels=args.wheels,
        index_url=args.index_url,
        only_say=args.dry_run,
        ask=not args.yes,
    )


def _load(args: argparse.Namespace) -> Loaded:
    from youtu_llm import config
    from youtu_llm.tools import configure

    flags = {key: value for key, value in vars(args).items() if key in config.FLAGS}
    return configure.load(getattr(args, "config", None), flags)
