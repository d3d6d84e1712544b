"""Daemons for the tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One for all tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="youtu") as folder:
        daemon = Daemon(
            Path(folder), {"service": {"queue_size": 2}, "engine": {"max_num_seqs": 2}}, []
        )
        daemon.wait_for("ready")
        yield daemon
        assert daemon.stop() == 0, daemon.log.read_text()


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of its own for a test: start(*engine_args, service={...}). Seconds are
    the harness's."""
    with ExitStack() as stack:

        def starter(*engine_args: str, **options: Any) -> Daemon:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="youtu"))
            seconds = {name: options.pop(name) for name in list(options) if name.endswith("_s")}
            daemon = Daemon(Path(folder), options, list(engine_args), **seconds)
            stack.callback(daemon.stop)
            return daemon

        yield starter
