"""`youtu start | stop | restart | enable`: systemctl, with the last crash and the remedy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from youtu_llm.errors import YoutuError

SERVICE, SOCKET = "youtu.service", "youtu.socket"
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
LOG_LINES = 20

# `stop` closes the socket too: a client on it would start the service again.
_UNITS = {
    "start": (SOCKET, SERVICE),
    "stop": (SOCKET, SERVICE),
    "restart": (SERVICE,),
    "enable": (SOCKET, SERVICE),
}


def has_service() -> bool:
    """Whether systemd runs this machine and knows the service."""
    return BOOTED.is_dir() and _systemctl("cat", SERVICE, quiet=True).returncode == 0


def control(verb: str) -> None:
    """Run systemctl with the verb. Raises YoutuError with what to do when it fails, also when
    the daemon runs in the state «failed»: it then answers no request."""
    if not BOOTED.is_dir():
        raise YoutuError("this machine does not run systemd: run the daemon with `youtu serve`")
    if verb != "stop":
        _show_last_crash()
        # After too many starts systemd refuses another one until its count is cleared.
        _systemctl("reset-failed", SERVICE, SOCKET, quiet=True)
    options = ("--now",) if verb == "enable" else ()
    if _systemctl(verb, *options, *_UNITS[verb]).returncode:
        raise YoutuError(
            f"`systemctl {verb}` failed: `journalctl -u youtu` and `youtu config check` say why"
        )
    if verb != "stop":
        state = _state()
        how = f"youtu is {state['ActiveState']}: {state['StatusText']}"
        if state["StatusText"].startswith("failed"):
            raise YoutuError(how)
        print(how)


def _show_last_crash() -> None:
    """Why systemd stopped restarting the service, with the last lines of its log."""
    state = _state()
    if state["ActiveState"] != "failed":
        return
    print(
        f"It failed before ({state['Result']}, exit status {state['ExecMainStatus']},"
        f" {state['NRestarts']} restarts). The end of its log:",
        file=sys.stderr,
    )
    log = ["journalctl", "--unit", SERVICE, "--lines", str(LOG_LINES), "--output", "cat"]
    words = subprocess.run([*log, "--no-pager", "--quiet"], capture_output=True, text=True)
    print("".join(f"  {line}\n" for line in words.stdout.splitlines()), end="", file=sys.stderr)


def _state() -> Mapping[str, str]:
    names = ("ActiveState", "StatusText", "Result", "ExecMainStatus", "NRestarts")
    shown = _systemctl("show", "--property", ",".join(names), SERVICE, quiet=True)
    found = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    return {name: found.get(name, "") for name in names}


def _systemctl(verb: str, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """`quiet` captures the output instead of printing it."""
    return subprocess.run(["systemctl", verb, *arguments], capture_output=quiet, text=True)
