"""The verbs of the service, with a systemctl that only answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from youtu_llm.errors import YoutuError
from youtu_llm.tools import systemctl

STATE = """#!/bin/sh
[ "$1" = show ] || exit 0
echo ActiveState=active
echo "StatusText={}"
"""


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(systemctl, "BOOTED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "systemctl"


@pytest.mark.parametrize("verb", ["start", "restart", "enable"])
def test_a_daemon_that_runs_and_has_failed_is_an_error(says: Path, verb: str) -> None:
    says.write_text(STATE.format("failed: the model «x» is not on this machine"))
    says.chmod(0o755)
    with pytest.raises(YoutuError, match="youtu is active: failed: the model «x» is not"):
        systemctl.control(verb)


def test_one_that_is_ready_is_none(says: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says.write_text(STATE.format("ready"))
    says.chmod(0o755)
    systemctl.control("restart")
    assert capsys.readouterr().out == "youtu is active: ready\n"
