"""What is typed wrongly, or not at all."""

from __future__ import annotations

import pytest

from tests.test_cli import Daemon, daemon, youtu  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["lst"], "no command lst: did you mean list?"),
        (["profile", "sohw"], "no command sohw: did you mean show?"),
        (["xyzzy"], "no command xyzzy: `youtu --help` lists them"),
    ],
)
async def test_a_misspelt_command(typed: list[str], hint: str) -> None:
    done = await youtu(None, *typed)
    assert (done.status, done.out) == (2, "")
    assert hint in done.err


async def test_alone_it_prints_a_guide() -> None:
    done = await youtu(None)
    assert (done.status, done.err) == (0, "")
    assert "youtu run qwen2.5-coder-0.5b " in done.out


async def test_a_prompt_behind_options(daemon: Daemon) -> None:  # noqa: F811
    done = await youtu(daemon, "run", "m", "--seed", "1", "你好", "--top-k", "3")
    assert done.status == 0
    assert daemon.bodies[-1]["messages"] == [{"role": "user", "content": "你好"}]
    done = await youtu(daemon, "chat", "--nonsense", "1", "x")
    assert "unrecognized arguments: --nonsense" in done.err
