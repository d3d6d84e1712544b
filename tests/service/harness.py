"""A real daemon process with a fake engine process behind it, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

TESTS = Path(__file__).parents[1]
RUN_DAEMON = TESTS / "service" / "run_daemon.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemon:
    """`config` is config.yaml as a tree; `folder` must have a short path (Unix sockets).
    `wrapper` is a command that executes the daemon's. `deadline_s` stands for all deadlines of
    the HTTP side, `interval_s` for what happens from time to time."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        engine_args: list[str],
        wrapper: Sequence[str] = (),
        **seconds: float,
    ) -> None:
        self.folder = folder
        self.socket = folder / "y.sock"
        self.port = free_port()
        service = {"socket": str(self.socket), "port": self.port} | config.get("service", {})
        model = folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        tree = {"model": {"name": str(model)}} | config | {"service": service}
        self.config_file = folder / "config.yaml"
        self.config_file.write_text(json.dumps(tree))
        self.log = folder / "log"
        self._engine_args = engine_args
        self._wrapper = wrapper
        self._environ = {f"TEST_{name.upper()}": str(value) for name, value in seconds.items()}
        self.start()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(
            base_url="http://youtu", transport=httpx.HTTPTransport(uds=str(self.socket)), timeout=30
        )

    def start(self) -> None:
        path = os.pathsep.join([str(TESTS.parent / "daemon"), str(TESTS), *sys.path])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._wrapper,
                    *(sys.executable, str(RUN_DAEMON), str(self.config_file)),
                    *self._engine_args,
                ],
                env=os.environ | {"PYTHONPATH": path} | self._environ,
                stderr=log,
            )

    def profile(self, name: str, **sections: Any) -> None:
        """Writes a profile's file."""
        folder = self.folder / "profiles"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(json.dumps(sections))

    def config(self) -> dict[str, Any]:
        """What config.yaml says."""
        tree: dict[str, Any] = json.loads(self.config_file.read_text())
        return tree

    def edit(self, **changes: Any) -> None:
        """Changes top-level sections of config.yaml."""
        self.config_file.write_text(json.dumps(self.config() | changes))

    def use(self, name: str) -> httpx.Response:
        return self.http.put("/profile", json={"name": name})

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get("/health").json()
        return body

    def wait(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """/health once it is so; pytest's time limit ends a wait in vain."""
        self._wait_for_listener()
        while not is_so(health := self.health()):
            time.sleep(0.02)
        return health

    def _wait_for_listener(self) -> None:
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            time.sleep(0.02)

    def wait_for(self, state: str) -> dict[str, Any]:
        def is_so(health: dict[str, Any]) -> bool:
            assert health["state"] != "failed" or state == "failed", health
            return bool(health["state"] == state)

        return self.wait(is_so)

    def engine(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def chat(self, prompt: str, **options: Any) -> httpx.Response:
        return self.http.post("/chat", json={"prompt": prompt, "stream": False, **options})

    def stream(self, prompt: str, **options: Any) -> Any:
        """A context manager of the response."""
        return self.http.stream("POST", "/chat", json={"prompt": prompt, **options})

    def stop(self) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait()

    def restart(self) -> None:
        """As after a reboot: another process, the same files."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0, self.log.read_text()
        self.start()


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """(event, data) of a stream of ours, as they come."""
    name = ""
    for line in response.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)
