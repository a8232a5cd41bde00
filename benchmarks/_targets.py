"""The performance targets, and whether they were met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks._cases import EAGER, JENSEN, OURS, SKEW, TRL, Case
from benchmarks._cases import FORWARD as FKL
from benchmarks._cases import REVERSE as RKL
from benchmarks._claims import Claim, quotient
from benchmarks._outcomes import Outcome, fastest, of_kind

# upper limits of the time relative to the floor, the textbook, TRL, and Liger at its best
_LIMITS = {FKL: (1.15, 0.85, 0.45, 0.75), RKL: (1.15, 0.85, 0.45, 0.75), JENSEN: (1.25, 0.6, 0.35, 0.6)}
_LIMITS |= {SKEW: (1.25, 0.6, None, None)}
_ANY_ALPHA_BETA = (1.2, 0.55, None, None)
_ON_A_GPU = (1.15, None, None, None)
_EAGER_LIMIT, _LIGHT = 1.7, 0.6


def targets(rows: Sequence[Outcome]) -> list[Claim]:
    """All targets that these outcomes can judge: float32 on a CPU, and any case on a GPU."""
    found: list[Claim] = []
    for case, group in groupby(rows, key=lambda row: row.case):
        if case.device == "cuda" or case.dtype == "float32":
            found += _of_case(case, list(group))
    return found


def _of_case(case: Case, rows: list[Outcome]) -> Iterator[Claim]:
    ours = next((row for row in rows if row.contestant == OURS and row.ranked), None)
    if ours is None:
        return
    floor, textbook, trl, liger = _LIMITS.get(case.divergence, _ANY_ALPHA_BETA)
    if case.device == "cuda":
        floor, textbook, trl, liger = _ON_A_GPU
    pairs = [("time / floor", floor, ours.floor)]
    if case.weighted == 1:
        standard = [row for row in of_kind(rows, "trl") if row.contestant == TRL]
        for name, limit, others in (
            ("textbook", textbook, of_kind(rows, "textbook")),
            ("TRL", trl, standard),
            ("Liger's best", liger, of_kind(rows, "liger")),
        ):
            best = fastest(others)
            if best is not None and limit is not None:
                pairs.append((f"time / {name}", limit, best.seconds))
    for what, limit, others in pairs:
        got = quotient(ours.seconds, others)
        if got is not None:
            yield Claim(case.name, what, got, limit)
    yield from _eager(case, rows)
    yield from _memory(case, rows, ours)


def _eager(case: Case, rows: list[Outcome]) -> Iterator[Claim]:
    for row in rows:
        if row.contestant == EAGER and row.ranked and row.times_floor is not None:
            yield Claim(case.name, "without a compiler: time / floor", row.times_floor, _EAGER_LIMIT)


def _memory(case: Case, rows: list[Outcome], ours: Outcome) -> Iterator[Claim]:
    """The default budget needs less memory than every peer; one far below the lightest peer is no slower than it."""
    peers = [row for kind in ("textbook", "trl", "liger") for row in of_kind(rows, kind) if row.peak_mb]
    lightest = min(peers, key=lambda row: row.peak_mb or 0.0, default=None)
    if lightest is None or lightest.peak_mb is None or ours.peak_mb is None:
        return
    yield Claim(case.name, f"peak / lightest peer ({lightest.contestant.name})", ours.peak_mb / lightest.peak_mb, 1.0)
    light = [row for row in of_kind(rows, "abkd") if row.peak_mb and row.peak_mb <= _LIGHT * lightest.peak_mb]
    best = fastest(light)
    got = quotient(best.seconds, lightest.seconds) if best else None
    if best is not None and got is not None:
        what = f"time / lightest peer, at {best.contestant.name} ({best.peak_mb:.0f} of its {lightest.peak_mb:.0f} MB)"
        yield Claim(case.name, what, got, 1.0)
