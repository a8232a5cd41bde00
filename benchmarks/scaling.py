"""Our time and peak memory over rows, vocabulary and memory budget: ``python -m benchmarks.scaling [--full]``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks._cases import FLOOR, OURS, PAPER, Case, Contestant, budgets
from benchmarks._loss_record import LossRecord
from benchmarks._outcomes import Outcome, outcomes
from benchmarks._pictures import Line, save, series_figure
from benchmarks._processes import Failed
from benchmarks._tables import about, markdown, number, show, write_csv
from benchmarks.loss import TINY, command, options

_COLUMNS = ("size", "ms (median)", "ms (least)", "× floor", "peak MB", "inputs and outputs MB")


class Point(NamedTuple):
    """One measured size of a series."""

    series: str
    size: int
    case: Case
    contestant: Contestant


def series(base: Case, *, full: bool) -> list[Point]:
    """Rows, vocabulary and memory budget, each varied around the base case."""
    rows = [256, 512, 1024, 2048, 4096, *([8192, 16_384] if full else [])]
    classes = [8192, 16_384, 32_768, 65_536, 131_072, *([262_144] if full else [])]
    sizes = [8, 16, 32, 64, 128, 256, 512, 1024]
    points = [Point("rows", size, replace(base, rows=size), OURS) for size in rows]
    points += [Point("vocabulary", size, replace(base, classes=size), OURS) for size in classes]
    return points + [
        Point("memory budget (MB)", size, base, one) for size, one in zip(sizes, budgets(*sizes), strict=True)
    ]


def tiny_series(base: Case) -> list[Point]:
    """Two points, one of rows and one of a memory budget."""
    return [Point("rows", base.rows, base, OURS), Point("memory budget (MB)", 1, base, *budgets(1))]


def measure(points: Sequence[Point], record: LossRecord, rounds: int, console: Console) -> list[tuple[Point, Outcome]]:
    """Measure the points of each case in turns with the floor in one process, and the memory of each in its own."""
    found: list[tuple[Point, Outcome]] = []
    for case in dict.fromkeys(point.case for point in points):
        group = [point for point in points if point.case == case]
        who = list(dict.fromkeys([FLOOR, *(point.contestant for point in group)]))
        console.print(f"{case.name}: {len(who) - 1} settings", highlight=False)
        timed = record.timing(case, who, rounds)
        memory = {one.name: record.memory(case, one) for one in who if one != FLOOR}
        by_contestant = {row.contestant: row for row in outcomes(case, who, timed, memory)}
        found += [(point, by_contestant[point.contestant]) for point in group]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing measurements, then print and write the tables and figures."""
    chosen = options(__doc__).parse_args(arguments)
    console = Console()
    record = LossRecord(chosen.out, "scaling", threads=chosen.threads, device=chosen.device, fresh=chosen.fresh)
    base = replace(TINY if chosen.tiny else Case(), device=chosen.device, divergence=PAPER)
    points = tiny_series(base) if chosen.tiny else series(base, full=chosen.full)
    points = [point for point in points if chosen.only in point.series]
    try:
        found = measure(points, record, chosen.rounds, console)
    except Failed as error:
        console.print(f"[red]the measurement failed[/]: {error}", highlight=False)
        return 1
    write(chosen.out, record.facts, command("scaling", chosen), found, console)
    draw(found, chosen.out)
    record.warn(console)
    console.print(f"written to {chosen.out}", highlight=False)
    return 0


def write(
    folder: Path, facts: dict[str, Any], typed: str, found: Sequence[tuple[Point, Outcome]], console: Console
) -> None:
    """Write ``scaling.md``, ``.csv`` and ``.json``, and print the tables."""
    parts = ["# How time and memory grow\n", about(facts, typed)]
    for name in dict.fromkeys(point.series for point, _ in found):
        rows = [cells_of(point, row) for point, row in found if point.series == name]
        show(console, f"{PAPER}: {name}", _COLUMNS, rows)
        parts += [f"## {name.capitalize()}\n", markdown(_COLUMNS, rows)]
    (folder / "scaling.md").write_text("\n".join(parts))
    header = "series size rows classes ms ms_least times_floor peak_mb tensors_mb note".split()
    table = [
        [point.series, point.size, point.case.rows, point.case.classes, row.ms, row.least_ms, row.times_floor,
         row.peak_mb, tensors_mb(point.case), row.note]
        for point, row in found
    ]  # fmt: skip
    write_csv(folder / "scaling.csv", header, table)
    records = [dict(zip(header, line, strict=True)) for line in table]
    (folder / "scaling.json").write_text(json.dumps({"facts": facts, "rows": records}, indent=1))


def cells_of(point: Point, row: Outcome) -> list[str]:
    """The figures of one size as strings."""
    figures = (row.ms, row.least_ms, row.times_floor, row.peak_mb, tensors_mb(point.case))
    return [f"{point.size:,}", *("–" if value is None else number(value) for value in figures)]


def tensors_mb(case: Case) -> float:
    """The size of hidden states, heads and the two gradients, which exist without us."""
    width = {"float32": 4, "bfloat16": 2}[case.dtype]
    return width * (case.rows + case.classes) * (2 * case.student + case.teacher) / 2**20


def draw(found: Sequence[tuple[Point, Outcome]], folder: Path) -> None:
    """Two figures per series: time with the floor's, and peak memory with the size of inputs and outputs."""
    for name in dict.fromkeys(point.series for point, _ in found):
        rows = [(point, row) for point, row in found if point.series == name and row.ms is not None]
        if not rows:
            continue
        slug = name.split(" ")[0]
        time: dict[str, Line] = {"abkd": [(point.size, row.ms or 0.0) for point, row in rows]}
        if all(row.floor for _, row in rows):
            time["floor"] = [(point.size, 1000 * median(row.floor)) for point, row in rows]
        save(series_figure(f"Time (ms) by {name}", time), folder, f"time-{slug}")
        peaks: Line = [(point.size, row.peak_mb) for point, row in rows if row.peak_mb]
        if peaks:
            there: Line = [(point.size, tensors_mb(point.case)) for point, _ in rows]
            lines = {"abkd": peaks, "tensors": there}
            save(series_figure(f"Peak memory (MB) by {name}", lines), folder, f"memory-{slug}")


if __name__ == "__main__":
    raise SystemExit(main())
