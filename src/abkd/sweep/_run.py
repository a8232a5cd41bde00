"""Executes the runs of a sweep one after the other, as ``abkd distill`` does; finished runs are not repeated."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from abkd.errors import NonFiniteError, OutputDirError
from abkd.output_dir import claimed, contents, note, remove_runs
from abkd.recipe import Recipe, check_same_run
from abkd.report import write_report
from abkd.report.sweep import summary_of
from abkd.run import RECIPE_FILE, RESULT_FILE, distill
from abkd.storage import atomic_write, disk_errors, read_checksummed, read_json, strict_json, write_checksummed
from abkd.sweep._plan import Place, Run, Settings, changed, plan, settings_of
from abkd.trainer import read_record
from abkd.version import __version__

logger = logging.getLogger("abkd")

SWEEP_FILE = "sweep.json"


def sweep(
    recipe: Recipe,
    seeds: Sequence[int] | None = None,
    grid: Mapping[str, Sequence[object]] | None = None,
    *,
    resume: bool = False,
) -> dict[str, object]:
    """Run ``recipe`` for each seed and each combination of the values in ``grid``.

    ``output_dir`` gets a run directory ``<setting>/seed-<n>`` for each (``seed-<n>`` without a grid), ``sweep.json``
    and ``report.html`` with means and standard deviations. A run whose loss is not finite is recorded, and the sweep
    continues with the others.

    Args:
        seeds: distinct integers; by default the recipe's own seed.
        grid: fields of a recipe, each with its values; None unsets a field.
        resume: skip finished runs, resume the unfinished one, start the others. Seeds and values may have been added.

    Returns:
        The contents of ``sweep.json``.

    Raises:
        AbkdError: any of the runs is invalid (before the first model is loaded); then as for a single run.
    """
    return sweep_settings(recipe, settings_of(recipe, grid or {}), seeds, resume=resume, grid=grid or {})


def sweep_settings(
    recipe: Recipe,
    settings: Settings,
    seeds: Sequence[int] | None = None,
    *,
    resume: bool = False,
    grid: Mapping[str, Sequence[object]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, object]:
    """As :func:`sweep`, for settings that are not a grid: the fields that each changes, by the name of the setting.

    ``progress`` is called with (finished runs, all runs).
    """
    known = _known_places(Path(recipe.output_dir)) if resume else []
    runs = plan(recipe, settings, seeds, known)
    _check_output(recipe, runs, resume=resume)
    with claimed(Path(recipe.output_dir)) if _first_process() else nullcontext():
        _check_output(recipe, runs, resume=resume)  # another sweep may have claimed it first
        return _Sweep(recipe, runs, known, grid, resume).run(progress)


class _Sweep:
    """The runs of a sweep and their results."""

    def __init__(
        self,
        recipe: Recipe,
        runs: Sequence[Run],
        known: Sequence[Place],
        grid: Mapping[str, object] | None,
        resume: bool,
    ) -> None:
        self.recipe, self.runs, self.grid = recipe, runs, grid
        self.places = list({place.directory: place for place in (*known, *(run.place for run in runs))}.values())
        self.directory = Path(recipe.output_dir)
        self.results = {
            run.directory: found for run in runs if resume and (found := read_checksummed(run.directory / RESULT_FILE))
        }
        self.begun = resume
        self.found: dict[str, object] = {}

    def run(self, progress: Callable[[int, int], object] | None) -> dict[str, object]:
        """Execute the runs that are not finished; returns the contents of ``sweep.json``."""
        _wait()  # no process writes before all have checked the directory
        if self.begun:
            self.claim()
        for number, run in enumerate(self.runs, start=1):
            what = ", ".join(part for part in (run.setting, f"seed {run.seed}") if part)
            done = run.directory in self.results
            logger.info("abkd: run %d of %d: %s%s", number, len(self.runs), what, ": already finished" * done)
            if not done:
                self.results[run.directory] = self.go(run)
                self.save()
            if progress is not None:
                progress(number, len(self.runs))
        return self.found

    def claim(self) -> None:
        """Replace what an earlier sweep left; from then on the directory belongs to this one."""
        if _first_process():
            if not self.begun:
                remove_runs(self.directory)
            places = (run.directory.relative_to(self.directory).as_posix() for run in self.runs)
            note(self.directory, RECIPE_FILE, SWEEP_FILE, "report.html", *places)
            atomic_write(self.directory / RECIPE_FILE, changed(self.recipe, {}).to_yaml().encode())
        self.begun = True
        self.save()

    def go(self, run: Run) -> dict[str, object]:
        """Execute a run, or the rest of it; returns its result.

        What an earlier sweep left is replaced once everything for the first run is loaded.
        """
        left = contents(run.directory).used
        _wait()
        fresh = self.begun or not left
        one = run.recipe if fresh else replace(run.recipe, config={**run.recipe.config, "overwrite_output_dir": True})
        try:
            distill(one, resume=bool(left) and self.begun, prepare=None if self.begun else self.claim)
        except NonFiniteError as error:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the other processes may not have seen it
                raise
            if not self.begun:
                self.claim()
            logger.warning("abkd: %s", error)
            note(run.directory, RESULT_FILE)
            write_checksummed(run.directory / RESULT_FILE, {"failed": str(error)})
        gc.collect()  # a trainer has reference cycles: without this, its models stay in memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return read_checksummed(run.directory / RESULT_FILE) or {}

    def save(self) -> None:
        """Write the results so far, as JSON and as an HTML report."""
        self.found = _save(self.recipe, self.runs, self.results, self.grid, self.places)


def _check_output(recipe: Recipe, runs: Sequence[Run], *, resume: bool) -> None:
    """Refuse a directory in use, a resume without an earlier sweep, and one whose runs have other recipes."""
    if not resume:
        recipe.check_ready(output=_first_process())
        return
    directory = Path(recipe.output_dir)
    if recipe.config.get("overwrite_output_dir"):
        raise OutputDirError("--resume continues in output_dir, --overwrite_output_dir starts over; choose one")
    if not (directory / SWEEP_FILE).is_file():
        raise OutputDirError(
            f"--resume with --seeds or --grid needs the {SWEEP_FILE} of an earlier sweep in {str(directory)!r}, which "
            "has none; start without --resume"
        )
    for run in runs:
        check_same_run(run.recipe, run.directory, read_record(run.directory).get("working_directory"))


def _known_places(directory: Path) -> list[Place]:
    """The folders that an earlier sweep recorded for its settings, including those not requested again."""
    try:
        found = read_json(directory / SWEEP_FILE)
    except (OSError, ValueError):  # _check_output raises if it does not exist
        return []
    listed = found.get("places") if isinstance(found, dict) else None
    places = []
    for each in listed if isinstance(listed, list) else []:
        match each:
            case {"directory": str(name), "changes": dict(changes)} if name in ("", Path(name).name) and name != "..":
                places.append(Place(name, changes))
    return places


def _save(
    recipe: Recipe,
    runs: Sequence[Run],
    results: Mapping[Path, dict[str, object]],
    grid: Mapping[str, object] | None,
    places: Sequence[Place],
) -> dict[str, object]:
    """Write the results so far, as JSON and as an HTML report."""
    directory, resolved = Path(recipe.output_dir), [run.recipe.resolved() for run in runs]
    found = {
        "version": __version__,
        "task": resolved[0]["task"],
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "grid": grid,
        "working_directory": os.getcwd(),
        "unlabelled_classes": list(dict.fromkeys(values.get("unlabelled_classes", "") for values in resolved)),
        "settings": _by_setting(directory, runs, results),
        "places": [place._asdict() for place in places],
    }
    text = strict_json(found)
    if _first_process():
        with disk_errors(f"the record of the sweep in {directory}", "Free disk space and continue with --resume"):
            atomic_write(directory / SWEEP_FILE, text.encode())
            write_report(directory)
    return json.loads(text)


def _by_setting(
    directory: Path, runs: Sequence[Run], results: Mapping[Path, dict[str, object]]
) -> list[dict[str, object]]:
    settings: dict[str, list[dict[str, object]]] = {}
    for run in runs:
        known: dict[str, object] = {"seed": run.seed, "directory": str(run.directory.relative_to(directory))}
        result = results.get(run.directory)
        if result:
            known |= result if "failed" in result else {"result": result}
        settings.setdefault(run.setting, []).append(known)
    return [{"name": name, "runs": known, "summary": summary_of(known)} for name, known in settings.items()]


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _wait() -> None:
    """Wait for the other processes, if there are any."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
