"""POST /chat over the Unix socket, through the real pipeline and a fake engine process."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from harness import Daemon, events


def test_stream(daemon: Daemon) -> None:
    with daemon.stream("你好, world") as response:
        got = list(events(response))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(data["text"] for name, data in got if name == "token") == "你好, world"
    assert [name for name, _ in got if name != "token"] == ["done"]
    done = got[-1][1]
    assert done["id"] == response.headers["x-request-id"]
    assert done["text"] == "你好, world"
    assert done["finish_reason"] == "stop"
    assert done["profile"] == "default"
    assert done["usage"]["completion_tokens"] == len("你好, world".encode()) + 1
    assert done["timings"]["ttft_ms"] > 0
    assert done["timings"]["decode_tokens_per_s"] > 0


def test_one_json(daemon: Daemon) -> None:
    response = daemon.http.post(
        "/chat",
        json={"messages": [{"role": "user", "content": "早上好"}], "stream": False},
        headers={"X-Request-Id": "car-1"},
    )
    assert response.status_code == 200
    assert response.json()["id"] == response.headers["x-request-id"] == "car-1"
    assert response.json()["text"] == "早上好"


def test_curl(daemon: Daemon) -> None:
    answer = subprocess.run(
        [
            *("curl", "-sN", "--unix-socket", daemon.socket, "http://youtu/chat"),
            *("-H", "Content-Type: application/json", "-d", '{"prompt": "导航到最近的加油站"}'),
        ],
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert answer.startswith("event: token\ndata: ")
    assert '"text":"导航到最近的加油站"' in answer.splitlines()[-2]


def test_a_stop_string_ends_the_answer_and_the_engine_s_work(daemon: Daemon) -> None:
    done = daemon.chat("好的。然后呢？" + "再说一遍" * 100, stop=["。", "!"]).json()
    assert done["text"] == "好的"
    assert done["finish_reason"] == "stop"
    assert done["usage"]["completion_tokens"] <= len("好的。".encode()) + 2


def test_max_new_tokens_bounds_and_the_context_s_rest(daemon: Daemon) -> None:
    done = daemon.chat("!long", max_new_tokens=5).json()
    assert (done["text"], done["finish_reason"]) == ("xxxxx", "length")
    refused = daemon.chat("!long", max_new_tokens=5000)
    assert refused.status_code == 400
    assert "bounds.max_new_tokens" in refused.json()["error"]["message"]
    filled = daemon.chat("x" * 2000, max_new_tokens=4096).json()
    assert filled["usage"]["prompt_tokens"] + filled["usage"]["completion_tokens"] == 2048


def test_punctuation_comes_after_the_stop_strings(daemon: Daemon) -> None:
    done = daemon.chat("今天天气很好 我们去公园玩", postprocess=True).json()
    assert done["text"] == "今天天气很好，我们去公园玩。"


def test_a_prompt_too_long_for_the_context(daemon: Daemon) -> None:
    response = daemon.chat("x" * 3000)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["n_ctx"] == 2048
    assert error["n_prompt_tokens"] > 3000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b'{"prompt": "a", "temperature": NaN}', None),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "\\ud800"}', None),
        (b'{"prompt": "a", "prompt": "b"}', None),
        (b"[" * 10_000, None),
        (b'{"prompt": "a", "tempratur": 1}', "tempratur"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', None),
        (b"{}", None),
        (b'{"messages": [{"role": "god", "content": "b"}]}', "messages.0.role"),
        (b'{"prompt": "a", "max_new_tokens": "5"}', "max_new_tokens"),
        (b'{"prompt": "a", "stop": [""]}', "stop.0"),
        (b'{"prompt": "a", "session": "a/b"}', "session"),
        (b'{"prompt": "a", "response_format": {"type": "json_object"}}', "response_format"),
    ],
)
def test_malformed_bodies_are_refused(daemon: Daemon, body: bytes, param: str | None) -> None:
    response = daemon.http.post("/chat", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["param"] == param
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tempratur": 1}, "tempratur: is unknown here, did you mean temperature"),
        ({"max_new_tokens": "5"}, 'must be a whole number (got "5"), did you mean 5'),
        ({"temperature": 5}, "temperature: must be at most 2.0 (got 5)"),
        ({"session": "a/b"}, "must look like a name of letters, digits and . _ : -"),
        ({"stop": 5}, "stop: must be a list (got 5)"),
        ({"response_format": {"type": "yaml"}}, "response_format.type: must be 'text'"),
    ],
)
def test_a_refusal_says_what_to_write(daemon: Daemon, body: dict[str, Any], words: str) -> None:
    assert words in daemon.chat("hello", **body).json()["error"]["message"]


def test_other_refusals(daemon: Daemon) -> None:
    def code(response: Any) -> tuple[int, str]:
        return response.status_code, response.json()["error"]["code"]

    assert code(daemon.http.post("/chat", content=b"{}")) == (415, "unsupported_media_type")
    assert code(daemon.chat("x" * (1 << 20))) == (413, "payload_too_large")
    assert code(daemon.http.get("/nothing")) == (404, "not_found")
    assert code(daemon.http.get("/chat")) == (405, "invalid_request")
    bad_id = {"X-Request-Id": "a b"}
    assert code(daemon.http.get("/livez", headers=bad_id)) == (400, "invalid_request")


def test_cancel_by_id(daemon: Daemon) -> None:
    with daemon.stream("!long", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        (row,) = daemon.http.get("/requests").json()["requests"]
        assert row["id"] == response.headers["x-request-id"]
        cancelled = daemon.http.post(f"/requests/{row['id']}/cancel")
        assert cancelled.status_code == 200
        (*_, (name, done)) = stream
    assert name == "done"
    assert done["finish_reason"] == "cancelled"
    assert done["text"].startswith("x")
    assert daemon.http.post("/requests/gone/cancel").status_code == 404


def test_a_disconnect_frees_the_engine(daemon: Daemon) -> None:
    with daemon.stream("!long", max_new_tokens=4096) as response:
        stream = events(response)
        next(stream)
        daemon.wait(lambda health: health["pages"]["used"] > 0)
    daemon.wait(lambda health: health["pages"]["used"] == 0)
    assert daemon.http.get("/requests").json()["requests"] == []


def test_a_full_queue_answers_429(daemon: Daemon) -> None:
    """Two run, two wait, the fifth is refused; a waiting one can be cancelled too."""

    def raw_request(id: str) -> socket.socket:
        body = b'{"prompt": "!long", "max_new_tokens": 4096}'
        head = f"POST /chat HTTP/1.1\r\nHost: youtu\r\nX-Request-Id: {id}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(daemon.socket))
        client.sendall(head.encode() + body)
        return client

    clients = [raw_request(f"queue-{number}") for number in range(4)]
    daemon.wait(lambda health: health["queue"] == {"running": 2, "waiting": 2, "limit": 2})
    refused = daemon.chat("hello")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    for client in clients:
        client.close()
    daemon.wait(lambda health: health["queue"] == {"running": 0, "waiting": 0, "limit": 2})


def test_a_time_limit_ends_an_answer_with_its_tokens_so_far(start: Callable[..., Daemon]) -> None:
    daemon = start(bounds={"request_time_s": 1.0})
    daemon.wait_for("ready")
    done = daemon.chat("!long", max_new_tokens=4096).json()
    assert done["finish_reason"] == "time_limit"
    assert done["text"].startswith("x")


def test_metrics(daemon: Daemon) -> None:
    daemon.chat("hello")
    text = daemon.http.get("/metrics").text
    assert 'youtu_requests_total{finish_reason="stop",profile="default"}' in text
    assert "youtu_ttft_seconds_bucket" in text
    assert 'youtu_pages{kind="limit"} 64.0' in text
    assert "youtu_ready 1.0" in text


def test_client_disconnects_are_counted(daemon: Daemon) -> None:
    def num_cancelled() -> float:
        pattern = r'youtu_requests_total\{finish_reason="cancelled",profile="default"\} (\S+)'
        found = re.search(pattern, daemon.http.get("/metrics").text)
        return float(found[1]) if found else 0.0

    before = num_cancelled()
    with daemon.stream("!long", max_new_tokens=4096) as response:
        next(events(response))
    daemon.wait(lambda _: num_cancelled() == before + 1)
