"""`youtu status` and `youtu ps`: the state of a daemon, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def health(report: Mapping[str, Any]) -> str:
    """/health in a few lines. Fields that an older or newer daemon lacks are left out."""
    engine, queue = report.get("engine") or {}, report.get("queue") or {}
    pages, memory = report.get("pages") or {}, report.get("memory") or {}
    crash = (engine.get("last_crash") or {}).get("reason") or ""
    rows = [
        ("state", report.get("state")),
        ("reason", report.get("reason")),
        ("profile", report.get("profile")),
        ("model", report.get("model")),
        ("device", report.get("device")),
        ("backend", report.get("backend")),
        ("engine", f"{engine.get('phase')}, {engine.get('restarts', 0)} restarts"),
        ("crash", crash.partition("\n")[0] if crash != report.get("reason") else ""),
    ]
    if "running" in queue:
        waiting, limit = queue.get("waiting", 0), queue.get("limit", "?")
        rows.append(("requests", f"{queue['running']} running, {waiting} of {limit} waiting"))
    if pages.get("limit"):
        why = f", limited by {pages['limit_by']}" if pages.get("limit_by") else ""
        rows.append(("pages", f"{pages.get('used')} of {pages['limit']} used{why}"))
    if memory.get("total"):
        rows.append(("memory", f"{memory['used'] / 1e9:.2f} of {memory['total'] / 1e9:.2f} GB"))
    rows += [("degraded", reason) for reason in report.get("degraded") or ()]
    return "\n".join(f"{name:<9} {value}" for name, value in rows if value)


def requests(rows: Iterable[Mapping[str, Any]]) -> str:
    head = ("ID", "PROFILE", "AGE", "PROMPT", "ANSWER")
    return table(
        head,
        [
            (
                row["id"],
                row["profile"],
                f"{row['age_s']:.1f} s",
                row["prompt_tokens"],
                row["completion_tokens"],
            )
            for row in rows
        ],
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [tuple(head), *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
