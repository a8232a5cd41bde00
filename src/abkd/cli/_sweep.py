"""``abkd distill --seeds`` and ``--grid``: several runs, then a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from abkd.errors import NonFiniteError
from abkd.recipe import Recipe


def run_sweep(
    recipe: Recipe, seeds: str | None, grid: Mapping[str, Sequence[object]] | None, *, resume: bool, console: Console
) -> None:
    """Run the sweep and print its table.

    Raises:
        AbkdError: see :func:`abkd.sweep.sweep`.
        NonFiniteError: the loss of a run did not stay finite; raised after the table is printed.
    """
    from abkd.report.sweep import runs_of
    from abkd.sweep import read_seeds, sweep

    found = sweep(recipe, None if seeds is None else read_seeds(seeds), grid, resume=resume)
    print_sweep(found, console)
    console.print(f"The report: {recipe.output_dir}/report.html", highlight=False, soft_wrap=True)
    failed = [run["directory"] for run in runs_of(found) if "failed" in run]
    if failed:
        raise NonFiniteError(f"{len(failed)} of {len(runs_of(found))} runs did not stay finite: {', '.join(failed)}")


def print_sweep(sweep: Mapping[str, object], console: Console) -> None:
    """Print the table of a sweep: mean ± standard deviation, the best setting of each column in bold."""
    from abkd.report.sweep import notes_of, sweep_table

    found = sweep_table(dict(sweep))
    if found is not None:
        table = Table(header_style="bold")
        table.add_column("")
        for column in found.columns:
            table.add_column(f"{column.label}\n{column.heading}", justify="right")
        for row in found.rows:
            cells = [Text(f"{cell.text} {cell.spread}".strip(), style="bold green" * cell.best) for cell in row.cells]
            table.add_row(Text(row.name, style="dim" * row.name.startswith("teacher")), *cells)
        console.print(table)
    for note in notes_of(dict(sweep)):
        console.print(Text(note, style="dim"))
