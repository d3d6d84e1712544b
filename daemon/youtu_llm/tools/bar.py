"""A progress bar and a spinner: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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


@contextlib.contextmanager
def spinner(what: str) -> Iterator[Callable[[str], None]]:
    """A mark that turns on stderr, beside words that the function it yields changes."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    is_utf8 = console.encoding.startswith("utf")
    with console.status(Text(what), spinner="dots" if is_utf8 else "line") as status:
        yield lambda words: status.update(Text(words))
