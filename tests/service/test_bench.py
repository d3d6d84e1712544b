"""`youtu bench` against real daemons with the fake engine: what it counts is what was asked."""

from __future__ import annotations

import json
from collections.abc import Callable

from harness import Daemon

from youtu_llm.tools import bench


async def test_two_servers_in_turns(start: Callable[..., Daemon]) -> None:
    load = bench.Load(num_requests=4, prompt_tokens=60, new_tokens=5, concurrency=2)
    one, other = start(), start()
    for daemon in (one, other):
        daemon.wait_for("ready")
    reports = await bench.run([f"unix://{one.socket}", other.url], load)
    for report in reports:
        assert len(report.samples) == 4
        assert {sample.new_tokens for sample in report.samples} == {5}
        assert all(abs(sample.prompt_tokens - 60) < 12 for sample in report.samples)
        assert report.rss_bytes > 10e6, "the daemon's processes were found"
        assert all(0 < s.ttft_s <= s.ttft_s + s.span_s <= s.total_s for s in report.samples)
    assert "ratio" in bench.as_table(reports)
    assert set(json.loads(bench.as_json(reports))["ratios"]) >= {"ttft_ms_p50", "rss_gb"}
