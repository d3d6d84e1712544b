"""Until a daemon can answer: it may still be starting, or loading its model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from youtu_llm.errors import YoutuError
from youtu_llm.tools import bar
from youtu_llm.tools.client import Daemon, NothingListens

POLL_S = 0.1
NOT_YET = frozenset({"loading", "engine_restarting"})  # codes of a refusal that will pass


def until_ready(
    find: Callable[[], Daemon], may_come: Callable[[], bool] = lambda: False
) -> Mapping[str, Any]:
    """/health of the daemon that `find` names, once it is ready. `may_come`: while nothing
    listens, whether something may do so soon. Raises YoutuError with the reason if it failed."""
    with bar.spinner("the daemon is starting") as show:
        while True:
            try:
                report: dict[str, Any] = find().call("GET", "/health", also=(503,))
            except NothingListens:
                if not may_come():
                    raise
                report = {}
            if report.get("state") == "ready":
                return report
            if report.get("state") == "failed":
                raise YoutuError(f"the daemon has failed: {report.get('reason')}")
            show(_words(report))
            time.sleep(POLL_S)


def _words(report: Mapping[str, Any]) -> str:
    reason = report.get("reason") or "the daemon is starting"
    share = (report.get("engine") or {}).get("progress")
    return f"{reason}: {share:.0%}" if share else reason
