"""Atomic file writes, JSON with checksums, file locks, and errors of a full or read-only disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from abkd.errors import AbkdError, OutputDirError, StorageError, shown

DRAFTS = ".*.draft"
"""Temporary files, left behind by a process that dies while writing."""

_SEAL = "seal"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ESTALE,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
_NO_ROOM = (
    "no space left",
    "disk quota",
    "file too large",
    "file write failed",
    *(f"os error {code}" for code in _FULL),
    "pytorchstreamwriter failed",
    "inline_container",  # torch.save, whose file ended too early: "unexpected pos 64 vs 0"
    "basic_ios::clear",  # or could not be closed
)


def in_full(path: str) -> str:
    """A path with a leading ``~/`` expanded, as a shell does; everything else in it is literal."""
    return os.path.expanduser(path) if path.startswith("~/") else path


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically, replacing an existing file.

    The data is on disk before the file gets its name, so that no process ever reads a partial file.
    """
    draft = path.with_name(draft_name(path))
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


def draft_name(path: Path) -> str:
    """A unique temporary name, in the same folder, for a file that will become ``path``."""
    return f".{path.name}.{uuid.uuid4().hex}.draft"


def check_new(path: Path, above: Path) -> None:
    """Raise OSError if ``path`` cannot be created: its existing parent ``above`` is a file, or a name is too long."""
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is a file")
    longest = os.pathconf(above, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in path.parts):
        raise OSError(errno.ENAMETOOLONG, f"a name is longer than the {longest} bytes that the file system allows")


def check_place_of(path: Path, what: str) -> None:
    """Raise OutputDirError if no file can be created: below a file, or with too long a name (or temporary name)."""
    try:
        check_new(
            path.with_name(draft_name(path)), next(each for each in path.absolute().parents if os.path.lexists(each))
        )
    except OSError as error:
        name = shown(str(path))
        raise OutputDirError(f"{what} cannot be written to {name} ({error.strerror}): choose another file") from error


def write_checksummed(path: Path, values: Mapping[str, object]) -> None:
    """Write JSON atomically, with a checksum that reveals any later change."""
    values = json.loads(strict_json(values))
    atomic_write(path, strict_json({**values, _SEAL: _seal(values)}).encode())


def strict_json(values: object, indent: int | None = 1) -> str:
    """JSON that every parser accepts: non-finite numbers are null, and text that is not valid UTF-8 is escaped.

    Values that JSON cannot represent are written as their ``repr``.
    """
    text = json.dumps(_plain(values), indent=indent, ensure_ascii=False, allow_nan=False, default=_plain_scalar)
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _plain_scalar(value: Any) -> object:
    """A scalar of numpy or torch as a Python number; the ``repr`` of anything else."""
    return (
        _plain(value.item()) if getattr(value, "size", None) == 1 or getattr(value, "ndim", None) == 0 else repr(value)
    )


def read_json(path: Path) -> Any:
    """The value in a JSON file, which need not be trusted.

    Raises:
        OSError: it does not exist, or cannot be read.
        ValueError: it is not JSON, not UTF-8, nested too deeply, or not a regular file (a pipe would never end).
    """
    if not path.is_file() and path.exists():
        raise ValueError(f"{path.name} is not a regular file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def read_checksummed(path: Path) -> dict[str, object] | None:
    """Read a file of :func:`write_checksummed`; None if it was changed, truncated or does not exist."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.pop(_SEAL, None) != _seal(values):
        return None
    return values


def _seal(values: Mapping[str, object]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sync(directory: Path) -> None:
    """Flush the names in a directory to disk, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(file: int | IO[bytes] | IO[str], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process holds it and this one does not ``wait``."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def disk_errors(what: str, way_out: str) -> Iterator[None]:
    """Turn disk errors while ``what`` is written into a StorageError that names the ``way_out``."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception
        if not (disk_refused(error) or (isinstance(error, OSError) and error.errno in _UNWRITABLE)):
            raise
        raise StorageError(f"{what} could not be written: {error}. {way_out}") from error


def disk_refused(error: BaseException) -> bool:
    """Whether an error means that the disk is full (safetensors, tokenizers and torch raise errors of their own)."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return not isinstance(error, AbkdError) and any(sign in text for sign in _NO_ROOM)
