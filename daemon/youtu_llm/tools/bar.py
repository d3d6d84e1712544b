"""A progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], what: str, *, done: int = 0) -> Iterable[T]:
    """The items, under a bar on stderr that counts `done` earlier ones too."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        items,
        what,
        total=done + len(items),
        completed=done,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
