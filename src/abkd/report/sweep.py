"""Several runs side by side: a row for each setting, mean ± standard deviation over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import yaml
from matplotlib.figure import Figure

from abkd import plots
from abkd.metrics import Metric
from abkd.plots.records import is_number
from abkd.report.content import CLIP, TRANSDUCTIVE, Page, title_of
from abkd.report.figures import Picture, pictures_of
from abkd.report.files import Record, RunFiles
from abkd.report.results import BEST, headlines
from abkd.report.sweep_record import check_sweep
from abkd.report.table import Cell, Row, Table, best_of

SPREAD = "± is the standard deviation over the seeds (n - 1)."


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: the "last" or "best" value (``kind``) of a metric."""

    metric: Metric
    kind: str

    def of(self, setting: Record, kind: str = "") -> Record | None:
        """Mean, spread and values of a setting, if it has any."""
        return setting["summary"].get(self.metric.name, {}).get(kind or self.kind)


def summary_of(runs: Sequence[Record]) -> Record:
    """``{name: {"last": {"mean", "std", "values"}, "best": ..., "teacher": ...}}`` over the finished ``runs``.

    ``std`` is that of a sample (n - 1), None for a single value. Values are in the order of the runs.
    """
    results = _results(runs)
    found: Record = {name: {} for result in results for name in result["last"]}
    for name, kinds in found.items():
        for kind in ("last", "best", "teacher"):
            values = [_value(result[kind][name]) for result in results if name in result[kind]]
            values = [value for value in values if is_number(value)]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                kinds[kind] = {"mean": statistics.fmean(values), "std": spread, "values": values}
    return found


def sweep_table(sweep: Record) -> Table | None:
    """The table of a sweep, or None without evaluation metrics. The best mean of a column is marked."""
    settings, columns = sweep["settings"], _columns(sweep)
    if not columns:
        return None
    rows = [Row(_name(one), [_cell(one, column, settings) for column in columns], highlight=False) for one in settings]
    return Table([column.metric for column in columns], [*rows, *_teachers(settings, columns)])


def sweep_page(files: RunFiles) -> Page:
    """The page about several runs, from ``sweep.json`` and the recipe that they share.

    Raises:
        DataError: ``sweep.json`` is not in the form that :func:`abkd.sweep` writes.
    """
    sweep = files.sweep
    check_sweep(sweep, files.directory / "sweep.json")
    settings, runs = sweep["settings"], runs_of(sweep)
    done = len(_results(runs))
    return Page(
        title=title_of(files),
        kicker="Sweep report",
        summary=[
            f"{len(settings)} setting{'s' * (len(settings) > 1)}",
            f"{done} runs" if done == len(runs) else f"{done} of {len(runs)} runs are finished",
            f"seeds {', '.join(map(str, sweep['seeds']))}",
        ],
        objective="",
        cards=[],
        table=sweep_table(sweep),
        trade=[],
        comparison=_pictures(sweep),
        pictures=[],
        answers=[],
        notes=notes_of(sweep),
        facts=[(run["directory"], _state(run)) for run in runs],
        recipe=files.recipe_text,
        version=str(sweep.get("version", "")),
        command=_command(files),
        compared="Final results of the runs",
    )


def notes_of(sweep: Record) -> list[str]:
    """Notes on how to read the numbers, and on what they exclude."""
    notes = [BEST] if _columns(sweep) else ["There was no evaluation set, so there are no metrics to compare."]
    if len(sweep["seeds"]) > 1 and _columns(sweep):
        notes.append(SPREAD)
    if sweep["task"] == CLIP:
        notes += dict.fromkeys(TRANSDUCTIVE[seen] for seen in sweep["unlabelled_classes"] if seen in TRANSDUCTIVE)
    notes += [_not_finite(run) for run in runs_of(sweep) if _not_finite(run)]
    return notes + [f"{run['directory']} is excluded: {run['failed']}" for run in runs_of(sweep) if "failed" in run]


def _not_finite(run: Record) -> str:
    """Which last values of a run are NaN or infinite, and so excluded from the means."""
    names = [name for name, point in run.get("result", {}).get("last", {}).items() if _value(point) is None]
    return f"{run['directory']} ended with non-finite {', '.join(names)}, excluded from the means" if names else ""


def runs_of(sweep: Record) -> list[Record]:
    """All runs of a sweep, by setting."""
    return [run for one in sweep["settings"] for run in one["runs"]]


def _results(runs: Sequence[Record]) -> list[Record]:
    return [run["result"] for run in runs if "result" in run]


def _value(point: Record | float) -> float | None:
    return point["value"] if isinstance(point, dict) else point


def _columns(sweep: Record) -> list[Column]:
    found = []
    for metric in headlines(_results(runs_of(sweep))):
        for kind in ("last",) if metric.part_of else ("last", "best"):
            note = f"{metric.note}, {kind}" if metric.unit and metric.note else kind  # all of them are held out
            found.append(Column(replace(metric, note=note), kind))
    return found


def _cell(setting: Record, column: Column, settings: Sequence[Record]) -> Cell:
    found, metric = column.of(setting), column.metric
    if found is None:
        return Cell("–")
    means = [each["mean"] for each in map(column.of, settings) if each is not None]
    spread = f"± {metric.text(found['std'])}" if is_number(found["std"]) else ""
    return Cell(metric.text(found["mean"]), spread, best=len(means) > 1 and found["mean"] == best_of(metric, means))


def _teachers(settings: Sequence[Record], columns: Sequence[Column]) -> list[Row]:
    """A row for the teacher; one for each if the settings have different ones."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for one in settings:
        found = [column.of(one, "teacher") if column.kind == "last" else None for column in columns]
        cells = tuple(c.metric.text(f["mean"]) if f else "" for c, f in zip(columns, found, strict=True))
        if any(cells):
            lines.setdefault(cells, []).append(str(one["name"]))
    return [
        Row("teacher" if len(lines) == 1 else f"teacher of {'; '.join(names)}", list(map(Cell, cells)), highlight=False)
        for cells, names in lines.items()
    ]


def _name(setting: Record) -> str:
    done, name = len(_results(setting["runs"])), setting["name"] or "student"
    return name if done == len(setting["runs"]) else f"{name} ({done} of {len(setting['runs'])} seeds)"


def _state(run: Record) -> str:
    if "failed" in run:
        return str(run["failed"])
    return "finished; it has its own report" if "result" in run else "not finished"


def _pictures(sweep: Record) -> list[Picture]:
    """One figure for each headline metric: the last value of each run."""
    ends = [column for column in _columns(sweep) if column.kind == "last"]
    caption = "A point for each seed, a bar at their mean."
    return pictures_of([(f"seeds-{column.metric.name}", _figure(sweep, column), caption) for column in ends])


def _figure(sweep: Record, column: Column) -> Figure | None:
    metric, factor = column.metric, column.metric.scale
    found = [(one["name"] or "student", column.of(one), column.of(one, "teacher")) for one in sweep["settings"]]
    rows = [{"name": name, "values": [factor * x for x in last["values"]]} for name, last, _ in found if last]
    teachers = {round(factor * teacher["mean"], 6) for _, _, teacher in found if teacher}
    title = f"{metric.label} ({metric.heading}; {metric.better} is better)"
    return plots.seeds_figure(rows, title, teacher=teachers.pop() if len(teachers) == 1 else None)


def _command(files: RunFiles) -> str:
    """The command that reproduces the sweep; empty if its settings are not a grid."""
    sweep = files.sweep
    if sweep["grid"] is None:
        return ""
    words = ["--seeds", ",".join(map(str, sweep["seeds"]))]
    if sweep["grid"]:
        text = yaml.safe_dump(sweep["grid"], default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
        words += ["--grid", text.strip()]
    return files.command(*words)
