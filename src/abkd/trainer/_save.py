"""The trained student on disk: whole or not there, and kept in another place where there is no room for it."""

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
"""Where a student is kept that neither its place nor the temporary directory takes."""


def save_student(run: RunContext, place: Path, write: Callable[[Path], None], *, saved_step: int) -> None:
    """Write the student beside its place, note its files as ours, then move them there.

    Args:
        write: writes it into a folder; called in every process.
        saved_step: the step of the newest checkpoint; -1 if there is none.

    Raises:
        StorageError: the disk refused; the sentence says where the trained weights are.
    """
    draft = place / _DRAFT
    again = saved_step == run.step > 0
    way_out = "Make room, then --resume saves it" if again else "Make room, or save it elsewhere"
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
    """Write the student to a folder on another disk (or in memory); says where it is, or that nothing takes it."""
    for parent in dict.fromkeys((tempfile.gettempdir(), *LAST_RESORTS)):
        folder = None
        with suppress(OSError, StorageError), disk_errors("the student", ""):
            folder = Path(tempfile.mkdtemp(prefix="abkd-student-", dir=parent))
            write(folder)
            return f"It is kept in {folder} instead: move it before that place is emptied"
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    if saved_step > 0:
        return f"No other place takes it; --resume goes on from the checkpoint of step {saved_step}"
    return "No other place takes it, and there is no checkpoint (save_strategy): begin again when there is room"
