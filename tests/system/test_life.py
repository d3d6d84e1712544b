"""The life of the package on a machine with systemd, from install to purge.

The steps are in order: each begins where the one before it ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.system.machine import Machine, until

pytestmark = pytest.mark.long

CONFIG = "/etc/youtu/config.yaml"


@pytest.fixture(autouse=True)
def _in_order(request: pytest.FixtureRequest, machine: Machine) -> Iterator[None]:
    if machine.failed:
        pytest.skip(f"{machine.failed} failed")
    num_failed = request.session.testsfailed
    yield
    if request.session.testsfailed > num_failed:
        machine.failed = request.node.name
        print(machine.journal()[-8000:])


def test_install_offline_waits_for_a_model(machine: Machine, deb: Path) -> None:
    shutil.copy(deb, machine.root / "root/1.deb")
    machine.run("dpkg", "--force-unsafe-io", "-i", "/root/1.deb")
    for unit in ("youtu.service", "youtu.socket"):
        assert machine.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
        assert machine.run("systemctl", "is-active", unit).stdout.strip() == "active"
    assert "run «youtu pull qwen2.5-coder-0.5b»" in machine.show("StatusText")
    assert "run «youtu pull qwen2.5-coder-0.5b»" in machine.health()["reason"]
    mode = machine.run("stat", "-c", "%a %U %G", "/run/youtu/youtu.sock").stdout
    assert mode.split() == ["660", "youtu", "youtu"]


def test_units_are_sound_and_safe(machine: Machine) -> None:
    for unit in ("youtu.service", "youtu.socket"):
        verify = machine.run("systemd-analyze", "verify", "--man=no", unit)
        assert verify.stdout + verify.stderr == ""
    security = machine.run("systemd-analyze", "security", "--threshold=20", "youtu.service")
    print(security.stdout.splitlines()[-1])


def test_says_that_torch_is_missing(machine: Machine, model: Path) -> None:
    shutil.copytree(model, machine.root / "var/lib/youtu/models" / model.name)
    done = machine.run("youtu", "restart", check=False)
    assert done.returncode == 1
    assert "setup-engine" in done.stderr
    until(lambda: "setup-engine" in machine.health().get("reason", ""), "told to set torch up")
    assert "No module named 'torch'" in machine.show("StatusText")
    assert machine.show("ActiveState") == "active"


def test_ready_with_the_platforms_torch(machine: Machine) -> None:
    (packages,) = (machine.root / "usr/local/lib").glob("python3*/dist-packages")
    (packages / "torch.pth").write_text("/opt/torch\n")
    shutil.copy(Path(__file__).with_name("faults.py"), packages / "youtu_faults.py")
    (packages / "youtu_faults.pth").write_text("import youtu_faults\n")
    assert "Nothing to do" in machine.run("youtu", "setup-engine", "--yes").stdout
    machine.write(CONFIG, "profile: car\n")
    machine.run("youtu", "restart")
    health = machine.wait_ready()
    assert health["profile"] == "car"
    assert health["backend"] == "cpu"  # the native kernels


def test_group_members_may_ask_and_others_may_not(machine: Machine) -> None:
    machine.run("useradd", "--no-create-home", "--groups", "youtu", "member")
    machine.run("useradd", "--no-create-home", "other")
    answer = machine.run("youtu", "chat", "你好", "--max-new-tokens", "4", user="member")
    assert answer.stdout.strip()
    refused = machine.run("youtu", "chat", "你好", user="other", check=False)
    assert refused.returncode == 1
    assert "join its group" in refused.stderr


def test_chat_streams_over_the_socket(machine: Machine) -> None:
    events = machine.chat("导航到最近的加油站，避开高速")
    names = [name for name, _ in events]
    assert names.count("token") > 1
    assert names[-1] == "done"
    assert events[-1][1]["profile"] == "car"
    text = "".join(data["text"] for name, data in events if name == "token")
    print(text)
    assert events[-1][1]["text"] == text


def test_reload_applies_the_profile(machine: Machine) -> None:
    daemon = machine.show("MainPID")
    machine.write(CONFIG, "profile: factory\n")
    machine.run("systemctl", "reload", "youtu")
    until(lambda: machine.health()["profile"] == "factory", "the profile factory")
    machine.wait_ready()
    assert machine.chat("1+1=", max_new_tokens=2)[-1][1]["profile"] == "factory"
    assert machine.show("MainPID") == daemon


def test_engine_is_killed_and_comes_back(machine: Machine) -> None:
    daemon, restarts = machine.show("MainPID"), machine.num_engine_restarts()
    machine.run("kill", "-KILL", machine.engine_pid())
    until(lambda: machine.num_engine_restarts() == restarts + 1, "a restart of the engine")
    assert "SIGKILL" in machine.wait_ready()["engine"]["last_crash"]["reason"]
    assert machine.show("MainPID") == daemon


def test_out_of_memory_takes_the_engine_alone(machine: Machine) -> None:
    daemon, restarts = machine.show("MainPID"), machine.num_engine_restarts()
    machine.run("systemctl", "set-property", "--runtime", "youtu.service", "MemoryMax=2G")
    machine.run("kill", "-USR2", machine.engine_pid())
    until(lambda: machine.num_engine_restarts() == restarts + 1, "a restart of the engine")
    machine.wait_ready()
    assert machine.show("MainPID") == daemon
    assert machine.show("NRestarts") == "0"
    machine.run("systemctl", "revert", "youtu.service")


def test_watchdog_ends_a_hang(machine: Machine) -> None:
    machine.write("/etc/systemd/system/youtu.service.d/test.conf", "[Service]\nWatchdogSec=10\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("youtu", "restart")
    machine.wait_ready()
    machine.run("kill", "-USR1", machine.show("MainPID"))
    until(lambda: machine.show("NRestarts") == "1", "a restart by the watchdog")
    journal = machine.journal()
    assert "Watchdog timeout" in journal
    assert "in hang" in journal  # the Python stack
    machine.wait_ready()


def test_four_failures_are_final_until_a_person_starts_it(machine: Machine) -> None:
    """The hang was the first of them."""
    for _ in range(3):
        until(lambda: machine.show("MainPID") != "0", "a daemon")
        daemon = machine.show("MainPID")
        machine.run("kill", "-KILL", daemon)
        until(partial(_main_pid_is_not, machine, daemon), "its end")
    until(lambda: machine.show("ActiveState") == "failed", "failed for good")
    assert machine.run("systemctl", "start", "youtu", check=False).returncode != 0
    started = machine.run("youtu", "start")
    assert "The end of its log:" in started.stderr
    machine.wait_ready()


def _main_pid_is_not(machine: Machine, pid: str) -> bool:
    return machine.show("MainPID") != pid


def test_upgrade_keeps_the_config_and_runs_the_new_code(machine: Machine, tmp_path: Path) -> None:
    _next_release(machine.root / "root/1.deb", machine.root / "root/2.deb", tmp_path)
    config = (machine.root / CONFIG[1:]).read_text()
    refused: list[str] = []
    over = threading.Event()

    def ask_on() -> None:
        """A client of the socket all the while: it may wait, it must not be refused."""
        while not over.is_set():
            try:
                with machine.http() as http:
                    http.get("/livez")
            except Exception as error:
                refused.append(repr(error))
            time.sleep(0.2)

    client = threading.Thread(target=ask_on)
    client.start()
    try:
        machine.run(
            "dpkg", "--force-unsafe-io", "--force-confdef", "--force-confold", "-i", "/root/2.deb"
        )
    finally:
        over.set()
        client.join()
    assert (machine.root / CONFIG[1:]).read_text() == config
    assert (machine.root / f"{CONFIG[1:]}.dpkg-dist").exists()
    with machine.http() as http:
        assert http.get("/livez").json() == {"ALIVE": True}
    assert not [error for error in refused if "ConnectError" in error], refused


def _next_release(old: Path, new: Path, folder: Path) -> None:
    """As a later version, with code that differs and has the same size and time."""
    tree = folder / "deb"
    subprocess.run(["dpkg-deb", "-R", old, tree], check=True)
    for name, before, after in (
        ("DEBIAN/control", "Version: 0.1.0", "Version: 0.1.0+next"),
        ("usr/lib/youtu/app/youtu_llm/service/http/control.py", '{"alive"', '{"ALIVE"'),
        ("etc/youtu/config.yaml", "# car,", "# Next: car,"),
    ):
        file = tree / name
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
        os.utime(file, ns=times)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, new], check=True)


def test_wrong_yaml_is_said_once(machine: Machine) -> None:
    good = (machine.root / CONFIG[1:]).read_text()
    num_lines = len(good.splitlines())
    machine.write(CONFIG, good + "nonsense: 1\n")
    assert machine.run("systemctl", "restart", "youtu", check=False).returncode != 0
    time.sleep(3)  # longer than RestartSec
    assert machine.show("ActiveState") == "failed"
    assert machine.show("ExecMainStatus") == "78"
    assert machine.show("NRestarts") == "0"
    assert f"{CONFIG}:{num_lines + 1}:1: nonsense: unknown key" in machine.journal()
    machine.write(CONFIG, good)
    machine.run("youtu", "start")
    assert machine.show("ActiveState") == "active"


def test_stop_stays_stopped(machine: Machine) -> None:
    machine.run("youtu", "stop")
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("youtu", "status", check=False).returncode == 3
    assert machine.run("pgrep", "-u", "youtu", check=False).stdout == ""
    machine.run("youtu", "enable")
    assert machine.show("ActiveState") == "active"


def test_remove_and_purge_leave_the_models(machine: Machine, model: Path) -> None:
    machine.run("dpkg", "-r", "youtu")
    assert machine.run("pgrep", "-u", "youtu", check=False).stdout == ""
    assert (machine.root / CONFIG[1:]).exists()
    machine.run("dpkg", "-P", "youtu")
    for gone in ("etc/youtu", "usr/lib/youtu", "var/cache/youtu", "var/lib/youtu/state"):
        assert not (machine.root / gone).exists(), gone
    kept = machine.root / "var/lib/youtu/models" / model.name / "youtu.json"
    assert json.loads(kept.read_text())["name"] == model.name
