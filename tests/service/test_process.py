"""The service process: no torch, little memory, and its notifications to systemd."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import Daemon

from youtu_llm import paths
from youtu_llm.service.status import State, Status
from youtu_llm.service.systemd import Notifier

MAX_RSS_BYTES = 120_000_000


def test_no_torch_in_the_service_process(daemon: Daemon) -> None:
    daemon.chat("hello")
    mapped = {Path(row.path).name for row in psutil.Process(daemon.process.pid).memory_maps()}
    assert not [name for name in mapped if "torch" in name]
    imported = "import sys, youtu_llm.service.app; print([m for m in sys.modules if 'torch' in m])"
    answer = subprocess.run([sys.executable, "-c", imported], capture_output=True, check=True)
    assert answer.stdout.strip() == b"[]"


@pytest.mark.model
def test_memory_with_a_real_tokenizer(start: Callable[..., Daemon]) -> None:
    daemon = start(model={"name": str(paths.models_dir() / "qwen2.5-coder-0.5b")})
    daemon.wait_for("ready")
    too_long = daemon.chat("把导航音量调低一点。" * 1000)
    assert too_long.json()["error"]["n_prompt_tokens"] > 5000
    rss = psutil.Process(daemon.process.pid).memory_info().rss
    print(f"service RSS {rss / 1e6:.1f} MB")
    assert rss < MAX_RSS_BYTES


def test_notifications_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        status = Status()
        notifier = Notifier()
        status.listen(notifier.follow)
        for state in (State.LOADING, State.READY, State.RESTARTING, State.READY):
            status.change(state)
        status.change(State.FAILED, "the model «汽车» is damaged")
        status.close()
        notifier.close()
        notified = [systemd.recv(1000).decode() for _ in range(7)]
    assert notified == [
        "STATUS=starting: the daemon is starting",
        "STATUS=loading: the model is being loaded",
        "STATUS=ready\nREADY=1",
        "STATUS=restarting: the engine is being restarted",
        "STATUS=ready",
        "STATUS=failed: the model «汽车» is damaged",
        "STATUS=draining: the daemon is shutting down\nSTOPPING=1",
    ]
