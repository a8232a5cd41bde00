"""Outcomes as a table on the console, in Markdown and in CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from abkd.metrics import number
from benchmarks import _claims
from benchmarks._claims import Claim
from benchmarks._outcomes import Outcome

_COLUMNS = ("case", "contestant", "ms", "least", "× floor", "first s", "peak MB", "loss err", "grad err")


def cells_of(row: Outcome) -> list[str]:
    """The row as strings; without a time, or with a wrong answer, the note takes the place of the rank."""
    rank = row.note if row.note and (not row.seconds or row.note == "wrong") else _text(row.times_floor, 2)
    return [
        row.case.name, row.contestant.name, _text(row.ms), _text(row.least_ms), rank, _text(row.first_s),
        _peak(row), _error(row.errors.get("loss")), _error(row.gradient_error),
    ]  # fmt: skip


def _text(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "–"
    return number(value) if digits is None else f"{value:.{digits}f}"


def _peak(row: Outcome) -> str:
    return (
        row.note if row.peak_mb is None and row.seconds and row.note.startswith("does not fit") else _text(row.peak_mb)
    )


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def show(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; names are left-aligned, figures right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_loss(folder: Path, facts: dict[str, Any], command: str, rows: list[Outcome], goals: list[Claim]) -> None:
    """``loss.md`` and ``loss.csv``."""
    parts = [
        "# The loss: time and memory\n",
        about(facts, command),
        (
            "`ms`: median of the rounds; `least`: the fastest round. `first s`: the first call, including compilation. "
            "`peak MB`: above inputs and outputs. `err`: relative to float64.\n"
        ),
        markdown(_COLUMNS, [cells_of(row) for row in rows]),
        "## Targets\n",
        markdown(_claims.COLUMNS, [goal.cells() for goal in goals]),
    ]
    (folder / "loss.md").write_text("\n".join(parts))
    header = (
        "case contestant device dtype ms ms_least times_floor first_s peak_mb error_loss error_hidden error_head note"
    )
    write_csv(folder / "loss.csv", header.split(), [_csv_row(row) for row in rows])


def _csv_row(row: Outcome) -> list[Any]:
    errors = [row.errors.get(name) for name in ("loss", "hidden", "head")]
    figures = (row.ms, row.least_ms, row.times_floor, row.first_s, row.peak_mb, *errors)
    return [row.case.name, row.contestant.name, row.case.device, row.case.dtype, *figures, row.note]


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows under a header; missing figures are empty."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([header, *rows])


def show_loss(console: Console, rows: list[Outcome], goals: list[Claim]) -> None:
    """Print a table per case, then the targets."""
    for case, group in groupby(rows, key=lambda row: row.case):
        measured = list(group)
        show(console, case.name, _COLUMNS[1:], [cells_of(row)[1:] for row in measured if row.seconds])
        for row in measured:
            if not row.seconds:
                console.print(f"  {row.contestant.name}: {row.note}", highlight=False)
    for name, chosen in groupby(goals, key=lambda goal: goal.of):
        show(console, f"Targets: {name}", _claims.COLUMNS[1:], [goal.cells()[1:] for goal in chosen])


def about(facts: dict[str, Any], command: str) -> str:
    """A line on the machine and the command that produced the figures."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "trl", "liger-kernel") if facts[name])
    where = facts["device"] if facts["device"] != "cpu" else facts["cpu"]
    machine = f"{where}, {facts['cores']} cores, {facts['threads']} threads; Python {facts['python']}, {versions}"
    return f"`{command}` on {machine}. Definitions: [benchmarks/README.md](../README.md).\n"
