"""A lock, so that only one run at a time writes into a folder."""

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
    """Lock a folder while this process writes into it, and create it if needed. The lock ends with its process.

    A process may claim a folder again that it has already claimed. A folder that was created here and is still empty at
    the end is removed.

    Raises:
        OutputDirError: another process is using the folder, or it is not writable.
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
    """Raise OutputDirError if another process is using a folder; a folder that does not exist is free."""
    error = None
    with suppress(OSError, ValueError), (directory / LOCK).open("rb") as file:
        error = None if lock_file(file, shared=True) else _busy(directory, file.fileno())
    if error is not None:
        raise error


def is_held(directory: Path) -> bool:
    """Whether this process has claimed a folder."""
    return os.path.realpath(directory) in _held


def _make(directory: Path) -> list[Path]:
    """Create a folder and its parents; returns those that did not exist, the deepest first."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        raise OutputDirError(
            f"output_dir: {str(directory)!r} cannot be created ({error.strerror}); use another"
        ) from error
    return missing


def _lock(directory: Path) -> int:
    path = directory / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputDirError(
                f"output_dir: {str(directory)!r} is not writable ({error.strerror}); use another"
            ) from error
        try:
            taken = lock_file(descriptor)
        except OSError as error:
            logger.warning(
                "abkd: %s does not support locks (%s): make sure that no other run writes into it",
                directory,
                error.strerror,
            )
            return descriptor
        if not taken:
            error = _busy(directory, descriptor)
            os.close(descriptor)
            raise error
        if _is_there(path, descriptor):
            break
        os.close(descriptor)  # its last owner has removed it in between
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # a full disk: the lock works without a name in it
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _busy(directory: Path, descriptor: int) -> OutputDirError:
    owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    return OutputDirError(
        f"output_dir: {str(directory)!r} is in use by {owner}; wait until it has finished, or use another --output_dir"
    )


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release_in_child() -> None:
    """Close the descriptors that a forked child inherits, or it would keep the lock when its parent dies."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
