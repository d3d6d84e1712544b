"""What the documents promise about themselves."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_the_readme_stays_short() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 170, "what it is, its figures, install, use, links: the rest is for docs/"
