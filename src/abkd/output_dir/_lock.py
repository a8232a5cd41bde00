"""One run at a time writes into a folder."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from abkd.errors import OutputDirError
from abkd.storage import lock_file

logger = logging.getLogger("abkd")

LOCK = ".abkd.lock"

_held: dict[str, int] = {}


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """While this process writes into a folder, which is made if need be. The lock ends with its process.

    A process may claim a folder again that it has already. A folder that was made here and is still empty at the end is
    removed.

    Raises:
        OutputDirError: another process is at work there, or it cannot be written into.
    """
    key = os.path.realpath(directory)
    if key in _held:
        yield
        return
    made = _make(directory)
    try:
        descriptor = _lock(directory)
        _held[key] = descriptor
        try:
            yield
        finally:
            _held.pop(key)
            with suppress(OSError):
                (directory / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                os.close(descriptor)
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def check_free(directory: Path) -> None:
    """Raise OutputDirError where another process is at work in a folder; a folder that is not there is free."""
    error = None
    with suppress(OSError, ValueError), (directory / LOCK).open("rb") as file:
        error = None if lock_file(file, shared=True) else _busy(directory, file.fileno())
    if error is not None:
        raise error


def is_held(directory: Path) -> bool:
    """Whether this process has claimed a folder."""
    return os.path.realpath(directory) in _held


def _make(directory: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were not there, the lowest first."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        raise OutputDirError(
            f"output_dir: {str(directory)!r} cannot be made ({error.strerror}); name another"
        ) from error
    return missing


def _lock(directory: Path) -> int:
    path = directory / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputDirError(
                f"output_dir: {str(directory)!r} cannot be written into ({error.strerror}); name another"
            ) from error
        try:
            taken = lock_file(descriptor)
        except OSError as error:
            logger.warning("abkd: %s takes no locks (%s): let no other run write into it", directory, error.strerror)
            return descriptor
        if not taken:
            error = _busy(directory, descriptor)
            os.close(descriptor)
            raise error
        if _is_there(path, descriptor):
            break
        os.close(descriptor)  # whoever had it has removed it in between
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # a full disk: the lock holds without a name in it
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _busy(directory: Path, descriptor: int) -> OutputDirError:
    owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    return OutputDirError(
        f"output_dir: {owner} is at work in {str(directory)!r}; wait until it has ended, or name another --output_dir"
    )


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _let_go() -> None:
    """A child has the descriptors of its parent, and would keep the lock when the parent dies."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
