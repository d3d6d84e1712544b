"""Clients that send slowly, not at all or stop reading are closed in time; others are served."""

from __future__ import annotations

import select
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Daemon, events

Start = Callable[..., Daemon]
DEADLINE_S = 1.0
POST = b"POST /chat HTTP/1.1\r\nHost: y\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Daemon]:
    config = {"bounds": {"max_new_tokens": 100_000}}
    with tempfile.TemporaryDirectory(prefix="youtu") as folder:
        daemon = Daemon(
            Path(folder),
            config,
            ["--max-model-len", "100000", "--step-s", "0.0002"],
            deadline_s=DEADLINE_S,
        )
        daemon.wait_for("ready")
        yield daemon
        assert daemon.stop() == 0
        assert not daemon.socket.exists()


def connect(daemon: Daemon) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(str(daemon.socket))
    return client


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionError:
        return True


def test_a_head_that_is_slow_or_missing(hasty: Daemon) -> None:
    began = time.monotonic()
    silent, dripping = connect(hasty), connect(hasty)
    with silent, dripping:
        try:
            for byte in POST:
                dripping.send(bytes((byte,)))
                time.sleep(0.1)
        except ConnectionError:
            pass
        assert time.monotonic() - began >= DEADLINE_S
        assert is_closed(dripping)
        assert is_closed(silent)
    assert hasty.chat("others do not notice").json()["finish_reason"] == "stop"


def test_the_next_head_of_a_connection_has_its_own_deadline(hasty: Daemon) -> None:
    with connect(hasty) as client:
        for _ in range(2):
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: y\r\n\r\n")
            assert b"200" in client.recv(1000)
        time.sleep(2 * DEADLINE_S)  # idle, which is no slow head
        client.sendall(b"GET /livez HTTP/1.1\r\n")
        assert is_closed(client)


def test_a_missing_body_is_an_error(hasty: Daemon) -> None:
    with connect(hasty) as client:
        client.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        assert b"the body took longer than" in client.recv(10_000)


def test_a_client_that_stops_reading_is_cancelled(hasty: Daemon) -> None:
    body = b'{"prompt": "!long", "max_new_tokens": 90000}'  # more than all buffers hold
    with connect(hasty) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        hang_up = select.poll()
        hang_up.register(client, 0)  # POLLHUP only: nothing is read
        assert hang_up.poll(60_000)
    assert hasty.wait(lambda health: health["pages"]["used"] == 0)["engine"]["restarts"] == 0


def test_a_half_closed_client_counts_as_gone(hasty: Daemon) -> None:
    body = b'{"prompt": "!long", "max_new_tokens": 4096}'
    with connect(hasty) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
    hasty.wait(lambda health: health["queue"]["running"] == health["pages"]["used"] == 0)


def test_keep_alives_while_the_engine_is_slow(start: Start) -> None:
    daemon = start("--step-s", "0.5", interval_s=0.2)
    daemon.wait_for("ready")
    with daemon.stream("slow", max_new_tokens=4) as response:
        wire = b"".join(response.iter_raw())
    assert b"\n\n:\n\n" in wire
    assert b"event: done" in wire


def test_the_socket_file_is_gone_at_the_end_unless_it_is_a_successor_s(start: Start) -> None:
    daemon = start()
    daemon.wait_for("ready")
    assert stat.S_ISSOCK(daemon.socket.stat().st_mode)
    daemon.socket.unlink()
    daemon.socket.write_text("a successor's")
    assert daemon.stop() == 0
    assert daemon.socket.read_text() == "a successor's"


def test_heat_allows_one_answer_at_a_time(start: Start) -> None:
    daemon = start("--step-s", "0.02", interval_s=0.1, bounds={"max_celsius": 80})
    zone = daemon.folder / "root/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    counter = daemon.folder / "root/sys/class/hwmon/hwmon2"
    counter.mkdir(parents=True)
    (counter / "oc1_event_cnt").write_text("4\n")

    def heat(celsius: int) -> None:
        (zone / "temp").write_text(f"{celsius * 1000}\n")  # a reader may meet the empty file
        daemon.wait(lambda h: h["board"]["celsius"].get("cpu-thermal") == celsius)

    daemon.wait_for("ready")
    heat(81)
    assert "above 80 °C" in daemon.health()["degraded"][0]
    assert daemon.health()["board"]["over_current_events"] == {"oc1": 4}
    metrics = daemon.http.get("/metrics").text
    assert 'youtu_temperature_celsius{zone="cpu-thermal"} 81.0' in metrics
    assert "youtu_hot 1.0" in metrics
    with daemon.stream("!long", max_new_tokens=120) as one:
        first = events(one)
        next(first)
        late = daemon.chat("second").json()
        *_, (_, done) = first
    assert done["usage"]["completion_tokens"] == 120
    assert late["timings"]["queue_ms"] > 200  # of the 2400 that the first one takes at least
    heat(78)
    assert daemon.health()["degraded"]  # it must cool by three degrees
    (zone / "temp").write_text("asleep\n")  # without a reading the verdict stands
    daemon.wait(lambda h: h["board"]["celsius"] == {})
    assert daemon.health()["degraded"]
    heat(76)
    assert daemon.health()["degraded"] == []
