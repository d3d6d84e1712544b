"""A machine with a real systemd, in namespaces of its own on this one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

BOOT = Path(__file__).with_name("boot")
SOCKET = "run/youtu/youtu.sock"
CGROUPS = Path("/sys/fs/cgroup")
CLEAN_PACKAGES = "systemd,systemd-sysv,dbus,python3,procps,libstdc++6"
QUIET_DPKG = ("--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*")


def until(is_so: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """What `is_so` answers once that is true. A shared machine may take long."""
    deadline = time.monotonic() + timeout_s
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.1)
    return answer


@contextlib.contextmanager
def overlay_root(folder: Path) -> Iterator[Path]:
    """This machine's files, with all changes kept apart."""
    upper, work, root = folder / "upper", folder / "work", folder / "root"
    for path in (upper, work, root):
        path.mkdir()
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
    try:
        (root / "etc/machine-id").write_text("")
        (root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)  # containers' ban on services
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
        shutil.rmtree(folder)


@contextlib.contextmanager
def clean_root(folder: Path, *, arch: str = "") -> Iterator[Path]:
    """A minimal Debian 12, of another architecture under qemu's emulation."""
    root = folder / "root"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", *QUIET_DPKG]
    command += [f"--architectures={arch}"] if arch else []
    command += [f"--include={CLEAN_PACKAGES}", "bookworm", str(root)]
    try:
        subprocess.run(["nice", *command], check=True)
        yield root
    finally:
        shutil.rmtree(folder)


class Machine:
    """`binds`: (folder of this machine, where it is seen there, read-only)."""

    def __init__(self, root: Path, *binds: tuple[Path, str]) -> None:
        self.root = root
        self.failed = ""  # the first step that failed
        self._name = f"youtu-test-{os.getpid()}"
        self._binds = [f"{source}:{target}" for source, target in binds]
        self._console = root.parent / "console"

    def boot(self, timeout_s: float = 120) -> None:
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [BOOT, self.root, self._name, *self._binds],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        until(self._is_up, "systemd is up", timeout_s)
        # The process that waits outside must not be in the cgroups that systemd rules.
        for procs in CGROUPS.glob(f"*/{self._name}/outside/cgroup.procs"):
            procs.write_text(str(self._process.pid))

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self._console.read_text()
        if not self._init_pid():
            return False
        answer = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return answer in ("running", "degraded")

    def _init_pid(self) -> str:
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def power_off(self) -> None:
        self.run("systemctl", "poweroff", check=False)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for folder in CGROUPS.glob(f"*/{self._name}"):
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):  # a process on its way out
                    os.rmdir(path)

    def run(
        self, *command: str, check: bool = True, user: str = "", timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Runs there as root, or as `user` with that one's groups."""
        enter = ["nsenter", "--target", self._init_pid(), "--mount", "--uts", "--ipc", "--net"]
        enter += ["--pid", "--cgroup", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        enter += ["LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"]
        if user:
            enter += ["setpriv", "--reuid", user, "--regid", user, "--init-groups"]
        done = subprocess.run(
            [*enter, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def show(self, name: str) -> str:
        """A property of youtu.service."""
        return self.run("systemctl", "show", "--value", "-p", name, "youtu.service").stdout.strip()

    def journal(self) -> str:
        return self.run("journalctl", "-u", "youtu", "-o", "cat", "--no-pager").stdout

    def engine_pid(self) -> str:
        return self.run("pgrep", "-u", "youtu", "-f", "youtu_llm.engine").stdout.split()[0]

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    # its daemon, over its socket

    def http(self) -> httpx.Client:
        """The socket's path leads through the namespace of the machine's first process."""
        socket = f"/proc/{self._init_pid()}/root/{SOCKET}"
        transport = httpx.HTTPTransport(uds=socket)
        return httpx.Client(transport=transport, base_url="http://youtu", timeout=120)

    def health(self) -> dict[str, Any]:
        with self.http() as http:
            body: dict[str, Any] = http.get("/health").json()
            return body

    def num_engine_restarts(self) -> int:
        count: int = self.health()["engine"]["restarts"]
        return count

    def wait_ready(self) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            try:
                health = self.health()
            except httpx.TransportError:  # between two of them
                return None
            return health if health["state"] == "ready" else None

        health: dict[str, Any] = until(ready, "ready")
        return health

    def chat(self, prompt: str, **options: Any) -> list[tuple[str, dict[str, Any]]]:
        """(event, data) of a streamed answer."""
        body = {"prompt": prompt, **options}
        with self.http() as http, http.stream("POST", "/chat", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        assert response.status_code == 200, lines
        events = [line.partition(": ")[2] for line in lines if line.startswith("event:")]
        data = [line.partition(": ")[2] for line in lines if line.startswith("data:")]
        return [(event, json.loads(text)) for event, text in zip(events, data, strict=True)]
