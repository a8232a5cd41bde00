"""Rows that cannot be used, and why."""

from __future__ import annotations

from typing import Literal

OnBadRow = Literal["error", "drop"]


class BadRowError(Exception):
    """A row that cannot be trained on. ``reason`` is the same for all rows of a kind, ``detail`` describes this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadRowError], tuple[str, str]]:
        return type(self), (self.reason, str(self))  # exceptions are pickled between processes


def cannot_be_read(error: Exception) -> str:
    """Message for an exception raised by the user's own dataset."""
    return f"cannot be read ({type(error).__name__}: {error})"
