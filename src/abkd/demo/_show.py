"""The demo's output: progress bars, then a table of results, answers, and the paths of the files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from abkd.metrics import METRICS, Metric, in_sentence

console = Console()


@contextmanager
def stage(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields a function ``(done, total)`` that updates it."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
        progress.update(task, completed=1, total=1)


@contextmanager
def small_networks() -> Iterator[None]:
    """One thread, because these networks are too small to gain from more; no log lines of the single runs."""
    import torch

    threads, logger = torch.get_num_threads(), logging.getLogger("abkd")
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


def say(text: str) -> None:
    """Print a sentence."""
    console.print(text, highlight=False)


def ending(result: Mapping[str, Any], trade: str, output_dir: Path, seconds: float) -> None:
    """Print the table, answers side by side, and the paths of student and report."""
    console.print()
    console.print(_table(result["title"], result["rows"], result["highlight"]))
    console.print(trade, highlight=False)
    for note in result["notes"]:
        console.print(Text(note, style="dim"))
    for answer in result["answers"][:2]:
        console.print(_answers(answer))
    console.print(f"The report:   {output_dir / 'report.html'}", highlight=False)
    console.print(f"The student:  AutoModelForCausalLM.from_pretrained({result['student']!r})", highlight=False)
    console.print(f"Total time: {seconds / 60:.1f} minutes.", highlight=False)


def _table(title: str, rows: Sequence[Mapping[str, Any]], highlight: str) -> Table:
    """A row per metric and a column per model, which fits a terminal of 80 columns."""
    table = Table(title=title, title_style="bold", header_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right", style="bold green" if row["name"] == highlight else "")
    for metric in METRICS.values():
        if metric.shown_from and any(row.get(metric.name) is not None for row in rows):
            label = in_sentence(metric.full_name) + (f" ({metric.unit})" if metric.unit else "")
            table.add_row(label, *(_value(metric, row.get(metric.name)) for row in rows))
    return table


def _value(metric: Metric, value: float | None) -> str:
    return "–" if value is None else metric.text(value)


def _answers(answer: Mapping[str, Any]) -> Panel:
    answers = (_line(who, " ".join(text.split())) for who, text in answer["answers"].items())
    return Panel(Group(Text(answer["prompt"], style="bold"), _line("reference", answer["reference"], "dim"), *answers))


def _line(who: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{who}: ", "bold cyan"), (text, style))
