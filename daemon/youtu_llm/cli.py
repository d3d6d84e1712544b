"""The `youtu` command. Each subcommand imports what it needs inside its function, so that
`youtu --help` and the client commands start at once.

Exit status: 0 done, 1 an error (a message on stderr), 2 wrong usage, 3 not ready (`status`),
78 a wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import paths
from .errors import ConfigError, YoutuError

if TYPE_CHECKING:
    from .config import Loaded


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except ConfigError as error:
        print(f"youtu: the configuration is wrong:\n{error.message}", file=sys.stderr)
        return error.exit_status
    except YoutuError as error:
        print(f"youtu: {error.message}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left. Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("youtu", description="A language model on this machine.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run the daemon")
    serve.set_defaults(run=_serve)
    _add_config(serve)
    _add_settings(serve)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"config file (else {paths.config_file()})"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Flags that set settings. `dest` is the dotted key, absent unless the flag is given."""

    def add(flag: str, key: str, help: str, **kwargs: Any) -> None:
        parser.add_argument(flag, dest=key, help=help, default=argparse.SUPPRESS, **kwargs)

    add("--profile", "profile", "scenario profile", metavar="NAME")
    add("--model", "model.name", "a model's name or directory", metavar="NAME")
    add("--kv-cache-max-page", "model.kv_cache_max_page", "most cache pages", type=int, metavar="N")
    add("--device", "engine.device", "auto, cpu or cuda", metavar="NAME")
    add("--threads", "engine.threads", "CPU threads of the engine", type=int, metavar="N")
    add("--socket", "service.socket", "path of the Unix socket", type=os.path.abspath)
    add("--host", "service.host", "TCP address to listen on")
    add("--port", "service.port", "TCP port, 0 for none", type=int, metavar="N")
    add("--streaming", "text.streaming", "stream answers", action=argparse.BooleanOptionalAction)
    add("--no-cache", "cache", "write no caches to disk", action="store_false")
    add(
        "--enable-long-context",
        "context.long_context",
        "extend the model's context by RoPE scaling",
        action="store_true",
    )


def _serve(args: argparse.Namespace) -> int | None:
    loaded = _load(args)
    from .service.app import run

    return run(loaded)


def _load(args: argparse.Namespace) -> Loaded:
    """The effective configuration: the file that --config or YOUTU_CONFIG names, which must
    exist, or else the default one, which need not."""
    from . import config

    file, optional = args.config, False
    if file is None:
        file, optional = paths.config_file(), not os.environ.get("YOUTU_CONFIG")
    flags = {key: value for key, value in vars(args).items() if key in config.FLAGS}
    return config.load(
        file,
        profile_dirs=paths.profile_dirs(),
        environ=os.environ,
        flags=flags,
        config_optional=optional,
    )
