"""A full and a read-only disk: serving continues, and `degraded` reports what was not saved."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness import Daemon

MOUNT = 'mount -t tmpfs -o size=10m,mode=700 tmpfs "$0" && exec "$@"'


def require_mounts(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk in a namespace of its own")
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT, folder, "true"], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"may not mount a small disk here: {tried.stderr.strip()}")


def test_full_and_read_only() -> None:
    with tempfile.TemporaryDirectory(prefix="youtu") as name:
        state = Path(name) / "state"
        state.mkdir()
        require_mounts(state)
        wrapper = ("unshare", "--mount", "sh", "-c", MOUNT, str(state))
        daemon = Daemon(Path(name), {}, [], wrapper=wrapper)
        try:
            daemon.wait_for("ready")
            check(daemon, Path(f"/proc/{daemon.process.pid}/root{state}"))
        finally:
            status = daemon.stop()
        assert status == 0


def check(daemon: Daemon, disk: Path) -> None:
    for profile in ("one", "two"):
        daemon.profile(profile, sampling={"max_new_tokens": 20})

    def degraded_after(name: str) -> list[str]:
        used = daemon.use(name)
        assert used.status_code == 200
        done = daemon.chat("hello").json()
        assert (done["text"], done["profile"]) == ("hello", name)
        degraded: list[str] = used.json()["degraded"]
        assert daemon.health()["degraded"] == degraded
        return degraded

    assert degraded_after("one") == []
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    (degraded,) = degraded_after("two")
    assert "was not saved (No space left on device): it ends with this run" in degraded
    assert json.loads((disk / "profile.json").read_text())["profile"] == "one"
    assert [path.name for path in disk.iterdir() if path != ballast] == ["profile.json"]
    ballast.unlink()
    assert degraded_after("two") == []
    nsenter = ["nsenter", "--target", str(daemon.process.pid), "--mount"]
    place = daemon.folder / "state"
    subprocess.run([*nsenter, "mount", "-o", "remount,ro", str(place)], check=True)
    (degraded,) = degraded_after("one")
    assert "was not saved (Read-only file system): it ends with this run" in degraded
    assert json.loads((disk / "profile.json").read_text())["profile"] == "two"
