"""The jail is real: each program here tries what it must not get."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.evals import sandbox

LIBRARY = "math, collections, typing, hashlib, re, itertools, string, random, functools, heapq"


@pytest.mark.parametrize(
    "program",
    ["x = 1", f"import {LIBRARY}, copy, decimal, datetime, json", "print('é中' * 10)"],
)
def test_what_only_computes_passes(program: str) -> None:
    assert sandbox.run(program) == sandbox.Verdict(True)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("assert 1 + 1 == 3, 'sum'", "AssertionError: sum"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os.kill(-1, 9)", "PermissionError"),
        ("open('note', 'w')", "PermissionError"),
        ("x = 'a' * (1 << 32)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "Error"),
    ],
)
def test_the_rest_fails_and_says_how(program: str, why: str) -> None:
    verdict = sandbox.run(program)
    assert not verdict.passed
    assert why in verdict.why


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(3600)"])
def test_what_does_not_end_is_ended(program: str) -> None:
    assert "still running" in sandbox.run(program, timeout_s=0.5).why


def test_files_stay_as_they_are(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for attack in (
        f"import os; os.unlink({str(kept)!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.rename({str(kept)!r}, {str(kept)!r} + '2')",
        f"open({str(kept)!r}, 'r+')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
    ):
        assert not sandbox.run(attack).passed, attack
    assert kept.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [kept]
