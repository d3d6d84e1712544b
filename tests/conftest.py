"""How much hypothesis tries, and which part of the long tests a run does."""

from __future__ import annotations

import pytest
from hypothesis import settings

# `make fuzz` takes "full". No deadline: a busy machine is not a bug.
settings.register_profile("small", max_examples=50, deadline=None)
settings.register_profile("full", max_examples=1000, deadline=None)
settings.load_profile("small")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        metavar="K/N",
        help="only every Nth file of those selected, from the Kth on: 0/3, 1/3, 2/3",
    )


@pytest.hookimpl(trylast=True)  # after -m has selected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.part:
        return
    part, count = map(int, config.option.part.split("/"))
    chosen = set(sorted({item.path for item in items})[part % count :: count])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in chosen])
    items[:] = [item for item in items if item.path in chosen]
