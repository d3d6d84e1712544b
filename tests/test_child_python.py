"""No command imports from the folder it is started in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import traps
from youtu_llm import child_python
from youtu_llm.tools import setup_engine

COMMANDS = (
    ["--help"],
    ["status"],
    ["config", "check"],
    ["models"],
    ["pull", "no-such-model"],
    ["import", "nothing.gguf"],
    ["quantize", "nothing", "--out", "mine"],
    ["setup-engine", "--dry-run"],
    ["chat", "hello"],
    ["serve", "--socket", "y.sock", "--port", "0", "--profile", "no-such-profile"],
)


def test_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = traps.make(tmp_path / "traps")
    command = child_python.module(sys.executable, "youtu_llm.engine", "--help")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, traps.sprung(folder)) == (0, []), done.stderr
    assert "usage: youtu-engine" in done.stdout


def test_the_probe_of_a_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    folder = traps.make(tmp_path / "traps")
    monkeypatch.chdir(folder)
    found = setup_engine.probe(sys.executable)
    assert traps.sprung(folder) == []
    assert found is not None
    assert found.torch


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: words[0])
def test_each_command(tmp_path: Path, arguments: list[str]) -> None:
    folder = traps.make(tmp_path / "traps")
    youtu = str(Path(sys.executable).with_name("youtu"))
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "YOUTU_MODELS": str(tmp_path)}
    subprocess.run([youtu, *arguments], cwd=folder, env=environ, capture_output=True)
    assert traps.sprung(folder) == []
