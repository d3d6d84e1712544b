"""Changing the live profile: what needs no restart, at once; the rest is refused in words."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from harness import Daemon, events


def test_switch_reload_and_refusal(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.wait_for("ready")
    profiles = daemon.folder / "profiles"
    profiles.mkdir()
    (profiles / "brief.yaml").write_text("sampling: {max_new_tokens: 2}\n")
    (profiles / "small.yaml").write_text("model: {kv_cache_max_page: 7}\n")
    (profiles / "broken.yaml").write_text("sampling: {max_new_tokens: many}\n")
    assert daemon.http.get("/profiles").json()["profiles"] == ["brief", "broken", "small"]

    with daemon.stream("x" * 100) as response:  # keeps what it began with
        stream = events(response)
        next(stream)
        used = daemon.http.put("/profile", json={"name": "brief"})
        assert used.status_code == 200
        *_, (_, done) = stream
    assert (len(done["text"]), done["profile"]) == (100, "default")
    assert daemon.http.get("/profile").json()["settings"]["sampling"]["max_new_tokens"] == 2
    done = daemon.chat("!long").json()
    assert (done["text"], done["profile"]) == ("xx", "brief")

    broken = daemon.http.put("/profile", json={"name": "broken"})
    assert broken.status_code == 400
    assert "broken.yaml:1:" in broken.json()["error"]["message"]
    small = daemon.http.put("/profile", json={"name": "small"})
    assert (small.status_code, small.json()["error"]["code"]) == (501, "restart_needed")
    assert "model" in small.json()["error"]["message"]
    assert daemon.http.put("/profile", json={"name": "no-such"}).status_code == 400
    assert daemon.health()["profile"] == "brief"

    assert daemon.http.post("/reload").json()["name"] == "default"  # what the files say
    config_file = daemon.folder / "config.yaml"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"profile": "brief"}))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait(lambda health: health["profile"] == "brief")
