"""Progress bar for long operations, if stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from abkd import terminal

T = TypeVar("T")

_FROM = 5_000  # rows or images; fewer are read within seconds


def progress(items: Iterable[T], total: int | None, doing: str, *, each: int = 1) -> Iterable[T]:
    """The same items (of ``each`` rows), with a bar on a terminal if there are many or ``total`` is unknown."""
    if not sys.stderr.isatty() or (total is not None and total * each < _FROM):
        return items
    return _shown(items, total, doing)


def _shown(items: Iterable[T], total: int | None, doing: str) -> Iterator[T]:
    from rich.progress import track

    console = terminal.console()
    with terminal.taken(console):
        yield from track(items, doing, total=total, console=console, transient=True)
