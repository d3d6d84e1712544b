"""A person's own daemon in the background: started by `youtu run`, ended by `youtu stop`.

Its pid stands in a file that it holds locked for as long as it lives, so a number that another
process has since got is never taken for it, and of two starts at once one finds the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from youtu_llm import child_python, paths, peer
from youtu_llm.errors import YoutuError
from youtu_llm.tools import bar
from youtu_llm.tools.client import Daemon

STOP_TIMEOUT_S = 60.0  # its answers may finish: service.drain_timeout_s
INIT_PID = 1
START_TIMEOUT_S = 10.0  # until a process that is being started has its number


def log_file() -> Path:
    return paths.state_dir() / "daemon.log"


def _pid_file() -> Path:
    return paths.state_dir() / "daemon.pid"


def youtu(*arguments: str) -> tuple[str, ...]:
    """This program again, for a child process."""
    run = f"import sys; sys.argv[0] = {sys.argv[0]!r}\nfrom youtu_llm.cli import main"
    return child_python.code(sys.executable, f"{run}\nsys.exit(main())", *arguments)


def start(*flags: str) -> subprocess.Popen[bytes] | None:
    """`youtu serve` with these flags, which outlives this terminal; None if one is starting or
    runs already. Its log is kept, and the one before it."""
    folder = paths.state_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _pid_file().open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        file.truncate(0)  # the number of an earlier one
        with contextlib.suppress(FileNotFoundError):
            os.replace(log_file(), log_file().with_suffix(".log.1"))
        with open(os.open(log_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
            process = subprocess.Popen(
                youtu("serve", *flags),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(file.fileno(),),  # and with it the lock
                start_new_session=True,
            )
        file.write(f"{process.pid}\n")
    return process


def last_words(num_lines: int = 10) -> str:
    """The end of its log."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(log_file().read_text(errors="replace").splitlines()[-num_lines:])
    return ""


def own_pid() -> int | None:
    """The daemon that this account itself runs: the one that the client commands talk to, or
    else the one in the background. None for a service, which systemd starts and ends."""
    listener = _listener(Daemon.from_environ())
    if listener is not None:
        is_own = listener.uid == os.geteuid() and listener.pid > INIT_PID
        return listener.pid if is_own else None
    with contextlib.suppress(FileNotFoundError), _pid_file().open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(file)
    return None


def _read_pid(file: TextIO) -> int | None:
    """Whoever took the lock writes the number as soon as the process has one."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        file.seek(0)
        text = file.read()
        if text.endswith("\n"):
            return int(text)
        time.sleep(0.01)
    return None


def _listener(daemon: Daemon) -> peer.Peer | None:
    path = daemon.socket_path
    if path is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None
        return peer.of(probe)


def stop(pid: int) -> None:
    """End a daemon of this account and wait for its end. Raises YoutuError if it takes long."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):  # ended by now
            signal.pidfd_send_signal(process, signal.SIGTERM)
        with bar.spinner("its answers finish"):
            # It is over then, though its parent, a `youtu run`, may not have asked for its status.
            is_over, _, _ = select.select([process], [], [], STOP_TIMEOUT_S)
    finally:
        os.close(process)
    if not is_over:
        raise YoutuError(
            f"the daemon (pid {pid}) has not ended within {STOP_TIMEOUT_S:g} s: `kill -9 {pid}`"
            " ends it at once"
        )
