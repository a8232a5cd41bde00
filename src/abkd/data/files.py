"""Find the files that hold the rows, and read their decompressed bytes."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from abkd.errors import DataError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
LONGEST = 64 << 20
"""Maximum bytes of a row. Anything longer is a file without line ends, or a decompression bomb."""

_HEAD = 16


class _Unpacked(io.RawIOBase):
    """Concatenated compressed streams. Python's own readers silently ignore trailing data that is not a stream."""

    def __init__(self, path: Path, stream: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._file, self._new, self._stream = path.open("rb"), stream, stream()

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        data = b""
        while not data:
            packed = b""
            if self._stream.eof:
                packed = self._after_end()
                if not packed:
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input:
                packed = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not packed:
                    raise EOFError
            data = self._stream.decompress(packed, len(into))
        into[: len(data)] = data
        return len(data)

    def _after_end(self) -> bytes:
        """The data after the end of a stream, without leading zero padding."""
        packed = self._stream.unused_data or self._file.read(io.DEFAULT_BUFFER_SIZE)
        while packed and not packed.strip(b"\0"):
            packed = self._file.read(io.DEFAULT_BUFFER_SIZE)
        return packed.lstrip(b"\0")

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(path.open("rb"), compression="zstd"))


_OPENERS: dict[str, Callable[[Path], Any]] = {  # each opens a binary file for reading
    "": lambda path: path.open("rb"),
    ".gz": gzip.GzipFile,
    ".bz2": lambda path: io.BufferedReader(_Unpacked(path, bz2.BZ2Decompressor)),
    ".xz": lambda path: io.BufferedReader(_Unpacked(path, lzma.LZMADecompressor)),
    ".zst": _open_zstd,
}

READABLE = f"{', '.join(KINDS)}, the first three also compressed ({' '.join(filter(None, _OPENERS))})"

_MAGIC = {  # first bytes of files that are not the text their name implies; longer ones before their prefixes
    b"\xff\xfe\x00\x00": "UTF-32 text: save it as UTF-8",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "compressed with gzip: rename it to end in .gz",
    b"BZh91AY&SY": "compressed with bzip2: rename it to end in .bz2",
    b"\xfd7zXZ\x00": "compressed with xz: rename it to end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: rename it to end in .zst",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "a parquet file: rename it to end in .parquet",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows. ``kind`` is one of :data:`KINDS`, ``packing`` the suffix of its compression, or ""."""

    path: Path
    kind: str
    packing: str

    @contextmanager
    def open_text(self) -> Iterator[IO[str]]:
        """The text, without a byte-order mark and with line ends unchanged; raises like :meth:`open`."""
        with self.open() as handle, io.TextIOWrapper(handle, "utf-8-sig", newline="") as text:
            yield text

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The decompressed bytes.

        Raises DataError, also while reading, if the file cannot be read, is truncated or damaged, or starts like
        another kind of file.
        """
        try:
            with _OPENERS[self.packing](self.path) as handle:
                self._check_head(handle.peek(_HEAD)[:_HEAD])
                yield handle
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
        except EOFError as error:
            raise DataError(f"{self.path} is truncated: it ends in the middle of its compressed data") from error
        except (OSError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        except MemoryError as error:
            raise DataError(f"{self.path} does not fit into memory: split it, or save it as .jsonl") from error

    def _check_head(self, head: bytes) -> None:
        found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
        if found is not None and self.kind != ".parquet":
            raise DataError(f"{self.path} is {found}")


def find_files(source: str | Path | Sequence[str | Path]) -> list[DataFile]:
    """The files that a path, a pattern (``data/*.jsonl``) or a list of them refers to, in reading order.

    Empty if a single name is not a file and does not look like one: a folder, or a dataset on the hub.
    Raises DataError if a file does not exist or its type is not supported.
    """
    if isinstance(source, (str, Path)):
        return [_data_file(path) for path in _matches(source)]
    found = [(name, _matches(name)) for name in source]
    for name, paths in found:
        if not paths:
            raise _absent(name)
    return [_data_file(path) for _, paths in found for path in paths]


def is_pattern(name: str | Path) -> bool:
    """Whether the name is a glob pattern, and not the name of an existing file."""
    return glob.has_magic(str(name)) and not os.path.lexists(name)


def _matches(name: str | Path) -> list[Path]:
    if is_pattern(name):
        if not (found := sorted(glob.glob(str(name), recursive=True))):
            raise DataError(f"no file matches {str(name)!r} (relative paths start at {Path.cwd()})")
        return [Path(path) for path in found]
    path = Path(name)
    if os.path.isdir(path):
        return []
    if os.path.lexists(path) or _kind(path)[0] in KINDS:
        return [path]
    return []


def _data_file(path: Path) -> DataFile:
    if not os.path.exists(path):
        raise _absent(path)
    if os.path.isdir(path):
        raise DataError(f"{path} is a directory: specify the files in it, for example '{path}/*.jsonl'")
    if not os.path.isfile(path):
        raise DataError(f"{path} must be a regular file, got a pipe or a device: save its content to a file")
    kind, packing = _kind(path)
    if kind not in KINDS:
        raise DataError(f"{path} is not supported: expected {READABLE}, got {path.suffix or 'no suffix'}")
    if kind == ".parquet" and packing:
        raise DataError(f"{path}: parquet files are compressed internally, so decompress it (expected {READABLE})")
    return DataFile(path, kind, packing)


def _kind(path: Path) -> tuple[str, str]:
    """The suffixes of the format and of the compression, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    return (suffixes[-1] if suffixes else ""), packing


def _absent(name: str | Path) -> DataError:
    if os.path.isdir(name):
        return DataError(f"{name} is a directory: specify the files in it, for example '{name}/*.jsonl'")
    return DataError(f"data file {name} does not exist: check the path (relative paths start at {Path.cwd()})")
