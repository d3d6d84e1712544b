#!/usr/bin/env python3
"""debian/changelog from the releases of CHANGELOG.md, to standard output."""

from __future__ import annotations

import re
import textwrap
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path

HERE = Path(__file__).parent
RELEASE = re.compile(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$(.*?)(?=^## |\Z)", re.M | re.S)
MAINTAINER = re.compile(r"^Maintainer: (.*)$", re.M)


def releases(text: str) -> list[tuple[str, str, list[str]]]:
    """(version, ISO date, changes) of each release in CHANGELOG.md, the newest first."""
    return [
        (version, date, [" ".join(item.split()) for item in re.split(r"^- ", body, flags=re.M)[1:]])
        for version, date, body in RELEASE.findall(text)
    ]


def debian(text: str, maintainer: str) -> str:
    entries = []
    for version, date, changes in releases(text):
        items = (
            textwrap.fill(change, 76, initial_indent="  * ", subsequent_indent="    ")
            for change in changes
        )
        when = datetime.fromisoformat(date).replace(tzinfo=timezone.utc)
        entries.append(
            f"youtu ({version}) unstable; urgency=medium\n\n"
            + "\n".join(items)
            + f"\n\n -- {maintainer}  {format_datetime(when)}\n"
        )
    return "\n".join(entries)


if __name__ == "__main__":
    (maintainer,) = MAINTAINER.findall((HERE / "debian/control").read_text(encoding="utf-8"))
    changelog = HERE.with_name("CHANGELOG.md").read_text(encoding="utf-8")
    print(debian(changelog, maintainer), end="")
