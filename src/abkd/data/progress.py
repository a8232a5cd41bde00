"""A bar for what takes long, where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

_FROM = 5_000  # rows or images; below, reading them takes a few seconds


def progress(items: Iterable[T], total: int | None, doing: str, *, each: int = 1) -> Iterable[T]:
    """The same items (of ``each`` rows), counted on a terminal where there are many, or nobody knows how many."""
    if not sys.stderr.isatty() or (total is not None and total * each < _FROM):
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, doing, total=total, console=Console(stderr=True), transient=True)
