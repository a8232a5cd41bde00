"""From measurements to the rows of the tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks._cases import EAGER, FLOOR, Case, Contestant
from benchmarks._claims import quotient


@dataclass
class Outcome:
    """The results of one contestant in one case; figures that are missing are None, with the reason in ``note``."""

    case: Case
    contestant: Contestant
    seconds: list[float] = field(default_factory=list)  # of each round
    floor: list[float] = field(default_factory=list)  # of the same rounds
    first_s: float | None = None
    peak_bytes: int | None = None
    read_from: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def ranked(self) -> bool:
        """Whether it is compared: it was timed, and its answer is correct."""
        return bool(self.seconds) and self.note != "wrong"

    @property
    def ms(self) -> float | None:
        """Median of the rounds."""
        return 1000 * statistics.median(self.seconds) if self.seconds else None

    @property
    def least_ms(self) -> float | None:
        """The fastest round."""
        return 1000 * min(self.seconds, default=float("nan")) if self.seconds else None

    @property
    def times_floor(self) -> float | None:
        """Median over the rounds of the time relative to the floor's."""
        return quotient(self.seconds, self.floor)

    @property
    def peak_mb(self) -> float | None:
        """Peak memory above inputs and outputs, in MB of 2^20 bytes, the unit of memory budgets."""
        return None if self.peak_bytes is None else self.peak_bytes / 2**20

    @property
    def gradient_error(self) -> float | None:
        """The worse of d hidden and d head."""
        return max(self.errors["hidden"], self.errors["head"]) if self.errors else None


def outcomes(
    case: Case, contestants: Sequence[Contestant], timed: Sequence[dict[str, Any]], memory: dict[str, dict[str, Any]]
) -> list[Outcome]:
    """One outcome per contestant, in the order given; ``memory`` is by the contestant's name."""
    floor = next((entry.get("seconds", []) for entry in timed if entry["contestant"] == FLOOR.name), [])
    by_name = {entry["contestant"]: entry for entry in timed}
    result = []
    for one in contestants:
        entry, peak = by_name[one.name], memory.get(one.name, {})
        note = entry.get("skipped") or peak.get("skipped", "") or ("wrong" if entry.get("wrong") else "")
        result.append(
            Outcome(
                case, one, entry.get("seconds", []), floor, entry.get("first_s"), peak.get("peak_bytes"),
                peak.get("read_from", ""), entry.get("errors", {}), note,
            )
        )  # fmt: skip
    return result


def of_kind(rows: Sequence[Outcome], kind: str) -> list[Outcome]:
    """The comparable outcomes of a kind, without our eager path."""
    return [row for row in rows if row.contestant.kind == kind and row.ranked and row.contestant != EAGER]


def fastest(rows: Sequence[Outcome]) -> Outcome | None:
    """The outcome with the lowest median time."""
    return min(rows, key=lambda row: row.ms or 0.0, default=None)
