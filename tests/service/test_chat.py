"""POST /chat over the Unix socket, through the real pipeline and a fake engine process."""

from __future__ import annotations

from harness import Daemon, events


def test_stream(daemon: Daemon) -> None:
    with daemon.stream("你好, world") as response:
        got = list(events(response))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(data["text"] for name, data in got if name == "token") == "你好, world"
    assert [name for name, _ in got if name != "token"] == ["done"]
    done = got[-1][1]
    assert done["text"] == "你好, world"
    assert done["finish_reason"] == "stop"
    assert done["usage"]["completion_tokens"] == len("你好, world".encode()) + 1
    assert done["timings"]["ttft_ms"] > 0
