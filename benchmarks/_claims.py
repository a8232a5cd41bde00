"""Ratios with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

COLUMNS = ("case", "claim", "value", "target", "")


@dataclass(frozen=True)
class Claim:
    """``value`` of the models or the case ``of`` should be at most (or at least) ``target``, if there is one."""

    of: str
    what: str
    value: float
    target: float | None = None
    at_most: bool = True

    @property
    def wanted(self) -> str:
        """The target as text."""
        return "–" if self.target is None else f"{'≤' if self.at_most else '≥'} {self.target:g}"

    @property
    def verdict(self) -> str:
        """Whether the target was met, in one word."""
        if self.target is None:
            return "–"
        met = self.value <= self.target if self.at_most else self.value >= self.target
        return "met" if met else "missed"

    def cells(self) -> list[str]:
        """A line of a table with :data:`COLUMNS`."""
        return [self.of, self.what, f"{self.value:,.3f}", self.wanted, self.verdict]


def quotient(over: Sequence[float], under: Sequence[float]) -> float | None:
    """Median of the quotients, each of two figures of the same round, so that slow rounds cancel out."""
    pairs = list(zip(over, under, strict=False))
    return median(a / b for a, b in pairs) if pairs else None
