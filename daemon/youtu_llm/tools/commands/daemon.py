"""The daemon, seen from outside: `youtu start`, `stop`, `restart`, `enable`, `reload`, `logs`
and `socket`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from youtu_llm import paths
from youtu_llm.errors import YoutuError

Command = Callable[..., argparse.ArgumentParser]


def add(command: Command) -> None:
    """Add the commands, by `command(name, run, help)`."""
    for verb in ("start", "restart", "enable"):
        command(verb, _systemctl, f"{verb} the service").set_defaults(verb=verb)
    command("stop", _stop, "stop your own daemon, or the service if you have none")
    command("reload", _reload, "make the daemon read its configuration again, and wait for it")
    logs = command("logs", _logs, "print the last lines of the daemon's log")
    logs.add_argument("-f", "--follow", action="store_true", help="print new lines as they come")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="(%(default)s)")
    command("socket", _socket, "print the path of the socket that these commands use")


def _systemctl(args: argparse.Namespace) -> None:
    from youtu_llm.tools import systemctl

    systemctl.control(args.verb)


def _stop(args: argparse.Namespace) -> None:
    from youtu_llm.tools import background, systemctl

    pid = background.own_pid()
    if pid is not None:
        background.stop(pid)
        print("The daemon has ended.")
    elif systemctl.has_service():
        systemctl.control("stop")
    else:
        print("No daemon of this account is running.")


def _reload(args: argparse.Namespace) -> None:
    from youtu_llm.tools import bar
    from youtu_llm.tools.client import RELOAD_TIMEOUT_S, Daemon

    daemon = Daemon.from_environ()
    with bar.spinner("the daemon reads its configuration"):
        live = daemon.call("POST", "/reload", timeout_s=RELOAD_TIMEOUT_S)["name"]
    print(f"The profile {live} is live.")


def _logs(args: argparse.Namespace) -> None:
    from youtu_llm.tools import background, systemctl
    from youtu_llm.tools.client import Daemon

    lines = str(max(0, args.lines))
    file = background.log_file()
    if Daemon.from_environ().socket_path == paths.SYSTEM_SOCKET and systemctl.has_service():
        command = ["journalctl", "--unit", systemctl.SERVICE, "--lines", lines]
        command += ["--follow"] if args.follow else ["--no-pager"]
    elif file.exists():
        command = ["tail", "--lines", lines, *(["-F"] if args.follow else []), str(file)]
    else:
        raise YoutuError(
            f"no log: {file} is what `youtu run` writes, and `youtu serve` logs to its terminal"
        )
    os.execvp(command[0], command)


def _socket(args: argparse.Namespace) -> None:
    from youtu_llm.tools.client import Daemon

    daemon = Daemon.from_environ()
    if daemon.socket_path is None:
        raise YoutuError(f"YOUTU_HOST names {daemon.host}, which is not a Unix socket")
    print(daemon.socket_path)
