"""Access over TCP, and the sockets themselves."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from harness import Daemon

from youtu_llm.errors import ConfigError
from youtu_llm.service.http.listeners import refuse_exposure, unix_socket
from youtu_llm.settings import ServiceSection

Start = Callable[..., Daemon]
KEY = {"Authorization": "Bearer secret"}


def status(daemon: Daemon, path: str, **headers: str) -> int:
    return httpx.get(daemon.url + path, headers=headers).status_code


def test_without_a_key(daemon: Daemon) -> None:
    assert status(daemon, "/health") == 200
    assert status(daemon, "/health", Host="evil.example") == 403
    assert status(daemon, "/health", Host=f"localhost:{daemon.port}") == 200
    assert status(daemon, "/health", Origin="http://evil.example") == 403
    assert status(daemon, "/health", Origin=daemon.url) == 200
    for path in ("/requests", "/profile", "/profiles"):
        assert status(daemon, path) == 403
        assert daemon.http.get(path).status_code == 200
    assert httpx.post(daemon.url + "/reload").status_code == 403


def test_with_a_key_and_an_origin(start: Start) -> None:
    page = "http://panel.example"
    daemon = start(service={"api_key": "secret", "allowed_origins": [page]})
    daemon.wait_for("ready")
    assert status(daemon, "/health") == 401
    assert status(daemon, "/health", Authorization="Bearer wrong") == 401
    assert status(daemon, "/livez") == 200
    assert status(daemon, "/profile", **KEY) == 200
    assert daemon.http.get("/health").status_code == 200
    assert "secret" not in daemon.http.get("/profile").text
    preflight = httpx.options(daemon.url + "/chat", headers={"Origin": page})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == page
    answer = httpx.post(
        daemon.url + "/chat", json={"prompt": "hi"}, headers={**KEY, "Origin": page}
    )
    assert answer.headers["access-control-allow-origin"] == page


def test_no_other_machine_without_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.local"):
        with pytest.raises(ConfigError, match="api_key"):
            refuse_exposure(ServiceSection(host=host))
        refuse_exposure(ServiceSection(host=host, api_key="secret"))
        refuse_exposure(ServiceSection(host=host, port=0))
    for host in ("127.0.0.1", "::1", "localhost"):
        refuse_exposure(ServiceSection(host=host))


def test_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "y.sock"
    with unix_socket(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        listener.listen()
        with pytest.raises(ConfigError, match="another daemon"):
            unix_socket(path)
    unix_socket(path).close()  # a stale file is replaced
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        unix_socket(path)
    assert path.read_text() == "precious"


def test_a_port_in_use_is_reported_and_leaves_nothing_running(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon = start(service={"port": taken.getsockname()[1]})
        assert daemon.process.wait() == 78
    assert "service.port" in daemon.log.read_text()
