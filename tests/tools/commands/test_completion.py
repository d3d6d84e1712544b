"""What a shell is offered, and that the script for bash hands it on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import youtu
from youtu_llm import cli
from youtu_llm.tools.commands import completion

BASH = """
_init_completion() { words=(youtu profile use fa) cword=3 cur=fa prev=use; }
__ltrim_colon_completions() { :; }
eval "$(youtu completion bash)"; _youtu; echo "${COMPREPLY[@]}"
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/youtu.json").touch()
    monkeypatch.setenv("YOUTU_MODELS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("re", ["restart", "reload"]),
        ("profile ", ["ls", "show", "use"]),
        ("run mi", ["mine"]),
        ("run profile:fa", ["profile:factory"]),
        ("run mine ", []),
        ("run --priority low mi", ["mine"]),
        ("chat --pri", ["--priority"]),
        ("chat --priority l", ["low"]),
        ("chat --verbose --stop 。 --sess", ["--session"]),
        ("serve --profile ed", ["education"]),
        ("serve --model mi", ["mine"]),
        ("profile use c", ["car"]),
        ("rm mine mi", ["mine"]),
        ("import ", []),
        ("nonsense ", []),
    ],
)
def test_words(models: Path, typed: str, offered: list[str]) -> None:
    assert completion.candidates(cli._parser(), typed.split(" ")) == offered


def test_every_command_is_offered() -> None:
    assert {"run", "list", "ls", "models", "stop", "socket", "completion"} <= set(
        completion.candidates(cli._parser(), [""])
    )


def test_bash() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", BASH], env={"PATH": path}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("factory\n", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
async def test_other_shells_have_a_script(shell: str) -> None:
    done = await youtu(None, "completion", shell)
    assert (done.status, done.out) == (0, completion.SCRIPTS[shell])
    assert (await youtu(None, "completion", "tcsh")).status == 2
