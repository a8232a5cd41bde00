"""Saves the trained student completely or not at all, elsewhere if its directory cannot be written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from abkd import output_dir
from abkd.errors import StorageError
from abkd.storage import disk_errors
from abkd.trainer._context import RunContext

_DRAFT = ".student.draft"
LAST_RESORTS = ("/dev/shm", os.path.expanduser("~"))
"""Where to save a student if neither its own nor the temporary directory can be written."""


def save_student(run: RunContext, place: Path, write: Callable[[Path], None], *, saved_step: int) -> None:
    """Write the student to a draft folder, record its files as ours, then move them into place.

    Args:
        write: writes the student into a folder; called in every process.
        saved_step: the step of the newest checkpoint; -1 if there is none.

    Raises:
        StorageError: the disk is full or not writable; the message says where the trained weights are.
    """
    draft = place / _DRAFT
    again = saved_step == run.step > 0
    way_out = "Free some disk space; --resume then saves it" if again else "Free some disk space, or save it elsewhere"
    try:
        with disk_errors(f"the student in {place}", way_out):
            if run.args.should_save:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            run.processes.wait()
            write(draft)
            run.processes.wait()
            if run.args.should_save:
                _move(draft, place, own=place == run.directory)
    except StorageError as error:
        if run.args.should_save:
            shutil.rmtree(draft, ignore_errors=True)
        if again or run.processes.count > 1:
            raise
        raise StorageError(f"{error}. {_keep_elsewhere(write, saved_step)}") from error


def _move(draft: Path, place: Path, *, own: bool) -> None:
    files = sorted(path.relative_to(draft) for path in draft.rglob("*") if path.is_file())
    if own:
        output_dir.note(place, *(file.as_posix() for file in files))
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / file, place / file)
    shutil.rmtree(draft, ignore_errors=True)


def _keep_elsewhere(write: Callable[[Path], None], saved_step: int) -> str:
    """Write the student to another disk or to memory; returns a sentence that says where it is, or the way out."""
    for parent in dict.fromkeys((tempfile.gettempdir(), *LAST_RESORTS)):
        folder = None
        with suppress(OSError, StorageError), disk_errors("the student", ""):
            folder = Path(tempfile.mkdtemp(prefix="abkd-student-", dir=parent))
            write(folder)
            return f"It was saved in {folder} instead: move it before that folder is cleared"
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    if saved_step > 0:
        return f"It could not be saved elsewhere; --resume continues from the checkpoint of step {saved_step}"
    return "It could not be saved elsewhere, and there is no checkpoint (save_strategy): free disk space and start over"
