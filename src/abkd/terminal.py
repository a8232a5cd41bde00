"""Standard error, and the bar that may be on it: what is printed meanwhile goes above it, on a line of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_taken: list[Console] = []


def console() -> Console:
    """The console of the bar that is being shown, which knows where the bar is; else a new one."""
    from rich.console import Console

    return _taken[-1] if _taken else Console(stderr=True)


def take(by: Console) -> None:
    """A bar is shown on this console from now on."""
    _taken.append(by)


def give_back(by: Console) -> None:
    """No longer."""
    if by in _taken:
        _taken.remove(by)


@contextmanager
def taken(by: Console) -> Iterator[None]:
    """While a bar is shown."""
    take(by)
    try:
        yield
    finally:
        give_back(by)
