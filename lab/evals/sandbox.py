"""A program's verdict, from a process that can do nothing but compute (jail.py)."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.evals import jail
from youtu_llm.errors import ResourceError
from youtu_llm.tools.evals.tasks import Verdict

TIMEOUT_S = 10.0


def run(program: str, timeout_s: float = TIMEOUT_S) -> Verdict:
    """Whether `program` runs to its end without an exception.

    It gets an empty folder that goes away, `timeout_s` of time, 1 GiB of memory, no network, no
    processes and no writing. Raises ResourceError where the kernel can't keep it in.
    """
    with (
        tempfile.TemporaryDirectory(prefix="youtu-eval") as folder,
        tempfile.TemporaryFile() as err,
    ):
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(jail.__file__)), str(timeout_s)],
            cwd=folder,
            env={"LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "backslashreplace"), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"still running after {timeout_s:g} s")
        finally:
            process.kill()  # it has no children: the filter lets it have none
            process.wait()
        err.seek(0)
        lines = err.read(1 << 17).decode("utf-8", "replace").strip().splitlines()
    last = lines[-1][: jail.MAX_MESSAGE] if lines else ""
    if process.returncode == jail.NO_JAIL:
        raise ResourceError(
            f"this machine cannot keep a program from the network and the files ({last}), so the"
            " model's code is not run here: use a Linux with seccomp, on x86-64 or arm64"
        )
    if process.returncode == jail.PASSED:
        return Verdict(True)
    if process.returncode < 0:
        return Verdict(False, f"killed by {signal.Signals(-process.returncode).name}")
    return Verdict(False, last or f"ended early with status {process.returncode}")
