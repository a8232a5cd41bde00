"""Files that are whole or not there, and a disk that refuses."""

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
"""What a process leaves that dies while it writes."""

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
    "inline_container",  # torch.save, whose file ended before its time: "unexpected pos 64 vs 0"
    "basic_ios::clear",  # or could not be closed
)


def in_full(path: str) -> str:
    """A path with its ``~/`` as the home directory, which a shell does; everything else in it is literal."""
    return os.path.expanduser(path) if path.startswith("~/") else path


def atomic_write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, replacing what is there.

    It is on disk before its name is, so that nobody ever sees a part of it.
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
    """Another name with each call, for what will be ``path``."""
    return f".{path.name}.{uuid.uuid4().hex}.draft"


def check_new(path: Path, above: Path) -> None:
    """Raise OSError where ``path`` cannot be made: what is there ``above`` it is a file, or a name is too long."""
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is a file")
    longest = os.pathconf(above, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in path.parts):
        raise OSError(errno.ENAMETOOLONG, f"a name is longer than the {longest} bytes that the file system takes")


def check_place_of(path: Path, what: str) -> None:
    """Raise OutputDirError where no file can be: below a file, or with a name too long, also for its draft."""
    try:
        check_new(
            path.with_name(draft_name(path)), next(each for each in path.absolute().parents if os.path.lexists(each))
        )
    except OSError as error:
        name = shown(str(path))
        raise OutputDirError(f"no {what} can be written to {name} ({error.strerror}): name another file") from error


def write_checksummed(path: Path, values: Mapping[str, Any]) -> None:
    """JSON, whole or not there, that shows when a character of it was changed."""
    values = json.loads(strict_json(values))
    atomic_write(path, strict_json({**values, _SEAL: _seal(values)}).encode())


def strict_json(values: Any, indent: int | None = 1) -> str:
    """JSON that every reader takes: a number that is not finite is null, and text that is no UTF-8 is escaped.

    What JSON has no form for is written as its ``repr``.
    """
    text = json.dumps(_plain(values), indent=indent, ensure_ascii=False, allow_nan=False, default=_plain_scalar)
    return text.encode(errors="backslashreplace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _plain_scalar(value: Any) -> Any:
    """A number of numpy or torch as Python's own; the ``repr`` of anything else."""
    return (
        _plain(value.item()) if getattr(value, "size", None) == 1 or getattr(value, "ndim", None) == 0 else repr(value)
    )


def read_json(path: Path) -> Any:
    """The value in a JSON file, wherever it came from.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is no JSON, no UTF-8, nested too deeply, or no regular file (a pipe would never end).
    """
    if not path.is_file() and path.exists():
        raise ValueError(f"{path.name} is no regular file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def read_checksummed(path: Path) -> dict[str, Any] | None:
    """What :func:`write_checksummed` wrote; None where it was changed, cut short or is not there."""
    try:
        values = read_json(path)
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


def lock_file(file: int | IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where another process has it and this one does not ``wait``."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def disk_errors(what: str, way_out: str) -> Iterator[None]:
    """Turns a disk's refusal while ``what`` is written into a StorageError that names the ``way_out``."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception
        if not (disk_refused(error) or (isinstance(error, OSError) and error.errno in _UNWRITABLE)):
            raise
        raise StorageError(f"{what} could not be written: {error}. {way_out}") from error


def disk_refused(error: BaseException) -> bool:
    """Whether an error says that there is no room (safetensors, tokenizers and torch have errors of their own)."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return not isinstance(error, AbkdError) and any(sign in text for sign in _NO_ROOM)
