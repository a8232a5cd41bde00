"""Checks that a recipe's output directory is free for its run, or can be resumed from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abkd.errors import OutputDirError
from abkd.output_dir import check_inputs, check_overwrite, check_place, contents
from abkd.recipe._checks import DIRECTORIES, FILES, MODELS, names

_RECORDS = ("recipe.yaml", "run.json", "metrics.jsonl", "result.json", "report.html")
_ONLY_BEGUN = {"recipe.yaml", "run.json"}  # of a run that failed before its first step: nothing to lose


def check_output(path: Path, *, overwrite: bool, resume: bool, inputs: Mapping[str, list[str]] | None = None) -> None:
    """Check the output directory of a run.

    Raises:
        OutputDirError: the path cannot be an output directory, is in use, is an input of the run, or has no checkpoint
            to resume from.
    """
    check_place(path, resume=resume)
    check_inputs(path, inputs or {})
    _check_records(path)
    if resume and overwrite:
        raise OutputDirError("--resume continues the run in output_dir, --overwrite_output_dir replaces it; choose one")
    found = contents(path)
    if overwrite:
        check_overwrite(path)
    elif resume:
        checkpoint = any(re.fullmatch(r"checkpoint-\d+/?", name) for name in found.used)
        if not (checkpoint or found.begun):
            foreign = f" and contains {found.foreign[0]}, which no run wrote; move that" if found.foreign else ""
            raise OutputDirError(
                f"--resume needs a checkpoint in {str(path)!r}, which has none{foreign}; start without --resume"
            )
    elif found.foreign or set(found.ours) - _ONLY_BEGUN:
        first = sorted({name.partition("/")[0] for name in found.used})
        raise OutputDirError(
            f"output_dir: {str(path)!r} is in use (it contains {first[0]}{', …' * (len(first) > 1)}); set another "
            "--output_dir, continue with --resume, or replace it with --overwrite_output_dir"
        )


def _check_records(path: Path) -> None:
    for name in _RECORDS:
        if os.path.lexists(path / name) and not (path / name).is_file():
            raise OutputDirError(
                f"output_dir: {str(path / name)!r} is not a regular file, and a run writes one there: move it, or set "
                "another --output_dir"
            )


def inputs_of(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files and folders that a recipe reads, by setting."""
    from abkd.models.adapters import base_folder

    given = {name: names(values.get(name)) for name in (*FILES, *DIRECTORIES, *MODELS)}
    bases = {name: [str(base) for each in given[name] if (base := base_folder(each))] for name in MODELS}
    return given | {f"the base model of {name}": found for name, found in bases.items()}
