"""A lock that lets only one job write to a folder; a job may have several processes."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from abkd.errors import OutputDirError
from abkd.storage import lock_file

_FILE = ".lock"
_PATIENCE, _PAUSE = 600.0, 0.05  # seconds: another process of the job may be checking many shards


def this_job(processes: int) -> str:
    """A name shared by the processes of one job and used by no other job."""
    if processes == 1:
        return f"process {os.getpid()} on {socket.gethostname()}"
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    return f"{processes} processes at " + ":".join(os.environ.get(name, "") for name in names)


@contextmanager
def writing(folder: Path, job: str, *, first: Callable[[], None], last: Callable[[], None]) -> Iterator[None]:
    """Lock ``folder`` while ``job`` writes to it. The lock ends with its process, even if that is killed.

    Args:
        job: see :func:`this_job`.
        first: called on entry, if no other process is writing there.
        last: called on exit, if this process is the last one and nothing failed.

    Raises:
        OutputDirError: another job is writing there.
    """
    with (folder / _FILE).open("a+") as file:
        if lock_file(file):
            first()
            _write(file, job)
        _join(file, job, folder)
        yield
        fcntl.flock(file, fcntl.LOCK_UN)
        if lock_file(file):
            last()


def _join(file: IO[str], job: str, folder: Path) -> None:
    """Share the lock with the other processes of the job (one that holds it exclusively is checking the folder)."""
    deadline = time.monotonic() + _PATIENCE
    while not lock_file(file, shared=True):
        if time.monotonic() > deadline:
            raise OutputDirError(
                f"{folder} has been locked by another process for {_PATIENCE:.0f} s; find that process"
            )
        time.sleep(_PAUSE)
    file.seek(0)
    owner = file.read()
    if owner != job:
        raise OutputDirError(f"the cache {folder} is being written by {owner}; wait for it, or set another path")


def _write(file: IO[str], job: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(job)
    file.flush()
