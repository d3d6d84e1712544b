"""What the documents promise about themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_the_readme_stays_short() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 170, "what it is, its figures, install, use, links: the rest is for docs/"


@pytest.mark.parametrize("page", ["DESIGN.md", "CODE_FLOW.md", "ADDING.md"])
def test_files_that_the_design_names_exist(page: str) -> None:
    """By their last part: the pages shorten paths."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    text = re.sub(r"- Examples worth reading.*", "", text)  # of other projects
    names = set(re.findall(r"[\w/]+\.py\b", text))
    folders = [REPOSITORY / name for name in ("daemon", "lab", "tests", "kernels")]
    there = {path.name for folder in folders for path in folder.rglob("*.py")}
    missing = {name for name in names if Path(name).name not in there and "NAME" not in name}
    assert not missing
