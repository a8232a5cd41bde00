"""The measurements of ``benchmarks.sources`` compared with their targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks._claims import Claim
from benchmarks._sources_contestants import FRESH, HALF, HIDDEN, LABELS, LIVE, ON_POLICY, SFT, TOP_K
from benchmarks._sources_figures import Cache, Figures, Line, Spread, Training, Writing, over_rounds, results
from benchmarks._training_report import steps_of

_LIMITS = {TOP_K: 1.10, HIDDEN: 1.15, HALF: 1.15}
_BYTES = {TOP_K: 300.0}


@dataclass(frozen=True)
class Judged:
    """A claim, and the extremes of its value over the rounds."""

    claim: Claim
    low: float
    high: float


def claims(lines: Sequence[Line], found: Figures) -> list[Judged]:
    """All claims that the lines of the record and their figures can judge."""
    timed, written, generated = (results(lines, kind) for kind in ("time", "write", "generate"))
    return [
        *_of_times(timed),
        *_of_bytes(found.caches),
        *_of_writing(written, found.writing),
        *_of_batches(generated),
        *_of_quality(found.trainings),
    ]


def _of_times(timed: Sequence[Line]) -> Iterator[Judged]:
    pairs = [(name, base, limit) for base in (SFT, LABELS) for name, limit in _LIMITS.items()]
    for name, base, limit in [*pairs, (LABELS, SFT, None), *((name, LIVE, None) for name in _LIMITS)]:
        value = _quotient(timed, name, base)
        if value is not None:
            yield _judged(f"{name} / {base}", value, limit)


def _of_bytes(caches: Sequence[Cache]) -> Iterator[Judged]:
    for each in caches:
        yield _judged(f"{each.contestant}: bytes per token", _once(each.bytes_per_token), _BYTES.get(each.contestant))


def _quotient(timed: Sequence[Line], over: str, under: str) -> Spread | None:
    """The median of the quotients of the same batch in the same round, and the extremes over whole rounds."""
    rounds = list(zip(steps_of(timed, over), steps_of(timed, under), strict=True))
    if not rounds:
        return None
    values = [top / bottom for each in rounds for top, bottom in zip(*each, strict=True)]
    whole = [sum(top) / sum(bottom) for top, bottom in rounds]
    return Spread(median(values), min(whole), max(whole))


def _of_writing(written: Sequence[Line], writing: Writing | None) -> Iterator[Judged]:
    if writing is not None and writing.expected is not None:
        rounds = [fmean(each) for each in steps_of(written, ON_POLICY)]
        ratios = [writing.expected / each for each in (writing.fresh.value, max(rounds), min(rounds))]
        yield _judged(f"a step of replay (fresh={FRESH:g}) / on-policy", Spread(*ratios))


def _of_batches(generated: Sequence[Line]) -> Iterator[Judged]:
    for result in generated:
        speeds = [{way: run["tokens"] / run["seconds"] for way, run in each.items()} for each in result["runs"]]
        for way in speeds[0]:
            yield _judged(f"tokens/s, prompts {way}", over_rounds([each[way] for each in speeds]))
        gain = [each["all at once"] / each["one by one"] for each in speeds]
        yield _judged("tokens/s, all at once : one by one", over_rounds(gain))


def _of_quality(trainings: Sequence[Training]) -> Iterator[Judged]:
    live = next((each for each in trainings if each.contestant == LIVE), None)
    for each in trainings:
        if live is not None and each is not live:
            value = each.after["forward_kl"] / live.after["forward_kl"]
            yield _judged(f"held-out forward KL: {each.contestant} / {LIVE}", _once(value))


def _judged(what: str, value: Spread, target: float | None = None) -> Judged:
    return Judged(Claim("", what, value.value, target), value.low, value.high)


def _once(value: float) -> Spread:
    return Spread(value, value, value)
