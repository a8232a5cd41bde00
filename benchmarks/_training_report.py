"""Tables and claims of the benchmarks of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console

from benchmarks import _claims, _tables
from benchmarks._claims import Claim

MIB = 2**20
LONG_STEP = 0.2
"""A ratio of steps of at least this many seconds has its target; shorter ones are told in milliseconds only."""
Records = Sequence[Mapping[str, Any]]
Names = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The figures of one contestant on one pair; those that were not measured are None (``rates``: empty)."""

    pair: str
    contestant: str
    seconds: float | None = None
    first_step: float | None = None
    rates: Mapping[str, float] | None = None
    """Of each unit, how much is processed per second."""
    peak_mb: float | None = None
    above_mb: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Wanted:
    """A claim to be judged: the time, or the memory, of ``over`` relative to ``under``, each the sum of contestants."""

    what: str
    over: Names
    under: Names
    target: float | None = None
    at_most: bool = True
    memory: bool = False


@dataclass(frozen=True)
class Report:
    """What the tables of a benchmark show: ``pairs`` described, ``units`` with the heads of their columns."""

    title: str
    pairs: Mapping[str, str]
    units: Mapping[str, str]
    claims: Sequence[Wanted]
    draw: Callable[[Sequence[Row], Path], None] | None = None
    """Writes a figure of a pair's rows into a folder."""


def write(
    report: Report, name: str, records: Records, folder: Path, absent: Mapping[str, str], console: Console
) -> None:
    """Tables to the console; ``NAME.md``, ``NAME.csv`` and figures into ``folder``."""
    rows = summarise(records)
    claims = [(*each.cells(), f"{more:+,.1f}") for each, more in judge(report.claims, records, rows)]
    columns = ("models", "contestant", "ms/step", "first step s", *report.units.values(), "peak MB", "above MB", "loss")
    tables = ((columns, [_cells(row, report.units) for row in rows]), ((*_claims.COLUMNS, "ms more"), claims))
    parts = [f"# {report.title}\n"]
    if records:
        facts = records[-1]["facts"]
        about = _tables.about(facts, f"python -m benchmarks.{name}")
        parts += [about, f"With transformers {facts['transformers']}.\n"]
    for pair in dict.fromkeys(row.pair for row in rows):
        parts.append(f"{pair}: {report.pairs[pair]}.\n")
        if report.draw is not None:
            report.draw([row for row in rows if row.pair == pair], folder)
    for heads, lines in tables:
        _tables.show(console, "", heads, lines)
        parts.append(_tables.markdown(heads, lines))
    parts += [f"Not run: {each}, {why}.\n" for each, why in absent.items()]
    (folder / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")
    _write_csv(folder / f"{name}.csv", rows, report.units)


def summarise(records: Records) -> list[Row]:
    """One row for each contestant of each pair, in the order in which they were first requested."""
    keys = dict.fromkeys((each["job"]["pair"], name) for each in records for name in each["job"]["contestants"])
    return [_row(pair, name, [r for r in records if r["job"]["pair"] == pair]) for pair, name in keys]


def _row(pair: str, name: str, records: Records) -> Row:
    values: dict[str, Any] = {}
    timed = [r["result"] for r in records if r["job"]["kind"] == "time" and name in r["result"]["runs"]]
    if timed:
        # the mean over the batches of each one's median over the rounds; the first batch is a warm-up
        seconds = fmean(median(batch) for batch in zip(*steps_of(timed, name), strict=True))
        counts = timed[0]["counts"][1:]
        values["seconds"] = seconds
        values["rates"] = {unit: fmean(batch[unit] for batch in counts) / seconds for unit in counts[0]}
        values["loss"] = next(iter(timed[0]["runs"][name]["loss"]), None)
    for result in (r["result"] for r in records if r["job"]["kind"] == "memory" and r["job"]["contestants"] == [name]):
        values["first_step"] = result["first_step"]
        values["peak_mb"], values["above_mb"] = memory_mb(result)
    return Row(pair, name, **values)


def memory_mb(result: Mapping[str, Any]) -> tuple[float, float]:
    """The peak of a measurement of memory, and what of it was not there before and is not gradient or state, in MB."""
    return (result["before"] + result["rise"]) / MIB, (result["rise"] - result["gradients_and_state"]) / MIB


def steps_of(timed: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """For each round, the seconds of each step after the first."""
    return [result["runs"][name]["seconds"][1:] for result in timed if name in result["runs"]]


def judge(wanted: Sequence[Wanted], records: Records, rows: Sequence[Row]) -> list[tuple[Claim, float]]:
    """The claims that the measurements can judge, each with the milliseconds (or MB) that ``over`` takes more."""
    found = []
    for pair in dict.fromkeys(row.pair for row in rows):
        timed = [r["result"] for r in records if r["job"]["pair"] == pair and r["job"]["kind"] == "time"]
        named = {row.contestant: row for row in rows if row.pair == pair}
        for each in wanted:
            sides = [
                _memory(named, who) if each.memory else _times(timed, who, each) for who in (each.over, each.under)
            ]
            value = _claims.quotient(*sides)
            if value is not None:
                long = each.memory or median(sides[1]) >= LONG_STEP
                claim = Claim(pair, each.what, value, each.target if long else None, each.at_most)
                unit = 1.0 if each.memory else 1e3
                found.append((claim, unit * median(a - b for a, b in zip(*sides, strict=False))))
    return found


def _times(timed: Sequence[Mapping[str, Any]], names: Names, claim: Wanted) -> list[float]:
    """The sum over contestants of the seconds of the same batch in the same round, where all of them took part."""
    whole = [result for result in timed if result["runs"].keys() >= {*claim.over, *claim.under}]
    return [sum(batch) for one in whole for batch in zip(*(steps_of([one], name)[0] for name in names), strict=True)]


def _memory(named: Mapping[str, Row], names: Names) -> list[float]:
    above = [named[name].above_mb for name in names if name in named]
    return [mb for mb in above if mb is not None and mb > 0]


def _cells(row: Row, units: Mapping[str, str]) -> list[str]:
    ms = None if row.seconds is None else 1e3 * row.seconds
    rates = row.rates or {}
    return [
        row.pair,
        row.contestant,
        _text(ms, ",.1f"),
        _text(row.first_step, ".2f"),
        *(_text(rates.get(unit), ",.0f") for unit in units),
        _text(row.peak_mb, ",.0f"),
        _text(row.above_mb, ",.0f"),
        _text(row.loss, ".5g"),
    ]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _write_csv(file: Path, rows: Sequence[Row], units: Mapping[str, str]) -> None:
    names = ("pair", "contestant", "seconds", "first_step", "peak_mb", "above_mb", "loss")
    lines = [
        [*(getattr(row, name) for name in names), *((row.rates or {}).get(unit) for unit in units)] for row in rows
    ]
    _tables.write_csv(file, [*names, *(f"{unit}_per_second" for unit in units)], lines)
