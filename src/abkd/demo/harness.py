"""What all demos have in common: sizes, an output directory, stages on the screen, recipes, a result and a report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from abkd.errors import OutputDirError
from abkd.output_dir import check_place, contents, note, remove_runs
from abkd.recipe import Recipe
from abkd.report.files import Record

console = Console()


@dataclass(frozen=True)
class Size:
    """The size of a demo: epochs of each student, and seeds (of the students, or of their sampled answers)."""

    epochs: float
    seeds: tuple[int, ...]


S = TypeVar("S", bound=Size)


@dataclass(frozen=True)
class Demo(Generic[S]):
    """A demo in two sizes.

    ``files``: names of what it leaves in its output directory, next to the result and the report. ``steps``: everything
    that it does there; returns the result.
    """

    full: S
    quick: S
    files: tuple[str, ...]
    steps: Callable[[Path, S], Record]

    def run(self, output_dir: Path, *, quick: bool = False, overwrite_output_dir: bool = False) -> Record:
        """Run the demo in an empty ``output_dir``, or replace one that contains only files of demos and runs.

        Raises:
            ConfigError: the teacher cannot be found.
            DataError: scikit-learn is needed, but not installed.
            OutputDirError: ``output_dir`` is in use, or cannot be a demo's directory.
        """
        began = time.monotonic()
        _claim(output_dir, overwrite=overwrite_output_dir)
        note(output_dir, *self.files)
        write_result({}, output_dir)
        result = self.steps(output_dir, self.quick if quick else self.full)
        say(f"Total time: {(time.monotonic() - began) / 60:.1f} minutes.")
        return result


def _claim(output_dir: Path, *, overwrite: bool) -> None:
    check_place(output_dir)
    if contents(output_dir).used and not overwrite:
        raise OutputDirError(
            f"{output_dir} is in use: choose another --output_dir, or replace it with --overwrite_output_dir"
        )
    remove_runs(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirError(f"cannot create {output_dir} ({error.strerror}); choose another --output_dir") from error


def say(text: str) -> None:
    """Print a sentence."""
    console.print(text, highlight=False)


@contextmanager
def stage(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields a function ``(done, total)`` that updates it."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
        progress.update(task, completed=1, total=1)


def data_files(directory: Path, ending: str) -> tuple[Path, Path]:
    """The files of a demo's data: for training, and held out."""
    return directory / f"train.{ending}", directory / f"held_out.{ending}"


def recipe(run_dir: Path, data: tuple[Path, Path], **settings: Any) -> Recipe:
    """The recipe of a run or a sweep, as a user would write it."""
    common = {
        "train_file": str(data[0]),
        "eval_file": str(data[1]),
        "output_dir": str(run_dir),
        "save_strategy": "no",
        "use_cpu": not torch.cuda.is_available(),
    }
    return Recipe.from_dict({**common, **settings})


def write_result(result: Mapping[str, object], directory: Path, report: Path | None = None) -> None:
    """Write ``demo.json``, and copy the report of a run or a sweep."""
    note(directory, "demo.json", "report.html")
    (directory / "demo.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    if report is not None:
        shutil.copy(report, directory / "report.html")
