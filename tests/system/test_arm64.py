"""The arm64 .deb on an arm64 Debian with its systemd, under qemu's emulation: `make test-arm64`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.conftest import REPOSITORY, require
from tests.system.machine import Machine, clean_root, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """The kernel runs arm64 programs by qemu. It holds qemu open, so no root needs a copy."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    entry = BINFMT / "qemu-aarch64"
    is_ours = not entry.exists()
    if is_ours:
        rule = QEMU.read_bytes().splitlines()[0]
        (BINFMT / "register").write_bytes(rule)
    try:
        yield
    finally:
        if is_ours:
            entry.write_text("-1")


@pytest.mark.skipif(not os.environ.get("YOUTU_ARM64"), reason="takes minutes: make test-arm64")
def test_installs_and_answers() -> None:
    require("mmdebstrap", "qemu-aarch64-static")
    (deb,) = (REPOSITORY / "dist").glob("youtu_*_arm64.deb")
    folder = Path(tempfile.mkdtemp(prefix="youtu-"))
    started = time.monotonic()

    def lap(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}")

    with emulation(), clean_root(folder, arch="arm64") as root:
        lap("an arm64 Debian")
        shutil.copy(deb, root / "root")
        machine = Machine(root)
        try:
            machine.boot(timeout_s=600)
            lap("its systemd is up")
            machine.run("dpkg", "--force-unsafe-io", "-i", f"/root/{deb.name}", timeout_s=900)
            lap("installed")
            until(lambda: _answers(machine), "an answer", timeout_s=600)
            lap("/health answers")
            print(machine.run("uname", "-m").stdout, machine.health(), sep="")
            print(machine.run("youtu", "status", check=False, timeout_s=600).stdout)
            assert machine.run("uname", "-m").stdout.strip() == "aarch64"
            assert "youtu pull" in machine.health()["reason"]
            assert machine.run("systemctl", "is-active", "youtu").stdout.strip() == "active"
        finally:
            machine.power_off()


def _answers(machine: Machine) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return bool(machine.health())
    return False
