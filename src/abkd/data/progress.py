"""A bar for what takes long, where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from abkd import terminal

T = TypeVar("T")

_FROM = 5_000  # rows or images; below, reading them takes a few seconds


def progress(items: Iterable[T], total: int | None, doing: str, *, each: int = 1) -> Iterable[T]:
    """The same items (of ``each`` rows), counted on a terminal where there are many, or nobody knows how many."""
    if not sys.stderr.isatty() or (total is not None and total * each < _FROM):
        return items
    return _shown(items, total, doing)


def _shown(items: Iterable[T], total: int | None, doing: str) -> Iterator[T]:
    from rich.progress import track

    console = terminal.console()
    with terminal.taken(console):
        yield from track(items, doing, total=total, console=console, transient=True)
