"""Read arrays from a ``.npz`` file, without trusting the sizes that it claims."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from abkd.errors import DataError
from abkd.memory import available_mb

_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    RuntimeError,
    MemoryError,
    RecursionError,
    SyntaxError,
)
_BROKEN = (*_BROKEN, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, NotImplementedError)


def read_arrays(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray | None]:
    """The arrays of a ``.npz`` file whose names are ``wanted``, and None for the others.

    Raises:
        DataError: the file is damaged or holds Python objects, or an array has another size than it claims, or is
            larger than the free memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in _of_numpy(archive)}
            return {name: _read(archive, entry) if wanted(name) else None for name, entry in members.items()}
    except _BROKEN as error:
        raise DataError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def array_names(path: Path) -> set[str]:
    """Names of the arrays; none if the file cannot be read, which :func:`read_arrays` reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.filename.removesuffix(".npy") for entry in _of_numpy(archive)}
    except _BROKEN:
        return set()


def _of_numpy(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as member:
        _check_size(member, entry)
    with archive.open(entry) as member:
        return npy.read_array(member, allow_pickle=False)


def _check_size(member: IO[bytes], entry: zipfile.ZipInfo) -> None:
    """Raise ValueError if the array claims more than the file holds, or more than the free memory."""
    name, reader = entry.filename, {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(member)
    if version not in reader:
        raise ValueError(f"{name} must be in version 1.0 or 2.0 of numpy's format, got {version}")
    shape, _, dtype = reader[version](member)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not loaded because that can run code")
    claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - member.tell()
    if claimed != held or min(shape, default=0) < 0:
        raise ValueError(f"{name} claims the shape {list(shape)} of {dtype}, but holds {held} bytes")
    free = available_mb(torch.device("cpu"))
    if free is not None and claimed / 2**20 > free:
        raise ValueError(
            f"{name} needs {claimed / 2**30:.1f} GiB of memory, but {free / 2**10:.1f} GiB are free; use a folder of "
            "image files, which are read one by one"
        )
