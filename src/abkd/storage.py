"""Files that are whole or not there, and a disk that refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from abkd.errors import StorageError

DRAFTS = ".*.draft"
"""What a process leaves that dies while it writes."""

_SEAL = "seal"


def write_whole(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, replacing what is there.

    It is on disk before its name is, so that nobody ever sees a part of it.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """JSON, whole or not there, that shows when a character of it was changed."""
    text = json.dumps({**values, _SEAL: _seal(values)}, indent=1, ensure_ascii=False)
    write_whole(path, text.encode())


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What :func:`write_sealed` wrote; None where it was changed, cut short or is not there."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.pop(_SEAL, None) != _seal(values):
        return None
    return values


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sync(directory: Path) -> None:
    """The names in a directory, too, are on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def refusals(what: str, way_out: str) -> Iterator[None]:
    """Turns a disk's refusal while ``what`` is written into a StorageError that names the ``way_out``."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_refused(error):
            raise
        raise StorageError(f"{what} could not be written: {error}. {way_out}") from error


def _disk_refused(error: Exception) -> bool:
    """Whether an error says that there is no room (safetensors and torch wrap the system's error in their own)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error).lower()
    signs = ("no space left", "os error 28", "os error 27", "file write failed", "disk quota", "file too large")
    return any(sign in text for sign in signs)
