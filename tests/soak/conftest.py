"""`make soak`: what takes longer than a test may. SOAK_SHARE=0.1 does a tenth of it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "service"), str(Path(__file__).parents[1])]

from harness import Daemon  # noqa: E402  it lies beside the tests that share it


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    with ExitStack() as stack:

        def starter(*engine_args: str, **config: Any) -> Daemon:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="youtu"))
            daemon = Daemon(Path(folder), config, list(engine_args))
            stack.callback(daemon.stop)
            daemon.wait_for("ready")
            return daemon

        yield starter


@pytest.fixture
def share() -> Callable[[int], int]:
    """Of a count, what this run does of it."""
    part = float(os.environ.get("SOAK_SHARE", "1"))
    return lambda count: max(1, round(count * part))


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return say
