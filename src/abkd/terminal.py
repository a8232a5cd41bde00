"""The console on standard error: while a progress bar is shown, other lines are printed above it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_taken: list[Console] = []


def console() -> Console:
    """The console of the progress bar that is shown, which prints above it; otherwise a new one."""
    from rich.console import Console

    return _taken[-1] if _taken else Console(stderr=True)


def take(by: Console) -> None:
    """Register the console of a progress bar."""
    _taken.append(by)


def give_back(by: Console) -> None:
    """Unregister the console of a progress bar."""
    if by in _taken:
        _taken.remove(by)


@contextmanager
def taken(by: Console) -> Iterator[None]:
    """Register the console of a progress bar for the duration of the block."""
    take(by)
    try:
        yield
    finally:
        give_back(by)
