"""Load rows from files, the hub or memory."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from abkd.data.bad_rows import cannot_be_read
from abkd.data.files import READABLE, DataFile, find_files
from abkd.data.messages import row_of_table
from abkd.data.progress import progress
from abkd.data.readers import Numbered, read_rows, unit_of
from abkd.data.rows import Part, Row, Rows
from abkd.data.stored import StoredRows, hash_of, keep, key, write_rows
from abkd.errors import AbkdError, DataError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

logger = logging.getLogger("abkd")

READ = f"Supported files end in {READABLE}"
FEW = 5_000
"""Up to this many rows stay in memory and are tokenised in this process, which takes a few seconds."""

_LARGE = 1 << 26  # bytes; larger files go to the cache even if they have few rows
_AT_ONCE = 1_000  # rows of a table
_NAMED_FILES = 3


def load_rows(
    source: str | Path | Sequence[str | Path] | Iterable[Row], *, config: str | None = None, split: str = "train"
) -> Rows:
    """Rows of files, of a dataset on the hub or on disk, or of an iterable of dicts.

    Files are ``.jsonl .json .csv .parquet``, the first three also compressed (``.gz .bz2 .xz .zst``): one, several in a
    list, or a pattern such as ``data/*.jsonl``. ``config`` and ``split`` select a part of a hub dataset. Raises
    DataError: a file that does not exist or is malformed (with the line number), an unknown dataset, items that are not
    rows, or no rows at all.
    """
    if isinstance(source, Rows):
        rows = source
    elif _names_files(source) and (files := find_files(source)):
        rows = _read_files(files)
    elif isinstance(source, (str, Path)):
        table = open_table(str(source), config, split, READ)
        rows = _of_dataset(table, str(source))
    elif hasattr(source, "features") and hasattr(source, "with_format"):
        rows = _of_dataset(source, "")
    else:
        rows = _number(_checked_rows(source, "the dataset"))
    if not len(rows):
        raise DataError(f"{rows.name or 'the dataset'} has no rows: expected at least one")
    return rows


def _names_files(source: object) -> TypeGuard[str | Path | Sequence[str | Path]]:
    if isinstance(source, (list, tuple)):
        return bool(source) and all(isinstance(name, (str, Path)) for name in source)
    return isinstance(source, (str, Path))


def _read_files(files: Sequence[DataFile]) -> Rows:
    """The rows in memory if they are few, otherwise a copy in the cache, which is written once."""
    parts: list[Part] = []
    stream = _numbered(files, parts)
    large = sum(file.path.stat().st_size for file in files) > _LARGE
    first = [] if large else list(itertools.islice(stream, FEW + 1))
    if not large and len(first) <= FEW:
        return _rows([row for _, row in first], [number for number, _ in first], parts)

    def build(file: Path) -> dict[str, object]:
        about = write_rows(file, progress(itertools.chain(first, stream), None, "reading the data"))
        return {**about, "before": [part.before for part in parts]}

    kept = keep(f"rows-{key([[file.kind, file.packing, hash_of(file.path)] for file in files])}", build)
    parts = [_part(before, file) for before, file in zip(kept.about["before"], files, strict=True)]
    stored = StoredRows(kept.folder)
    return _rows(stored, stored.numbers, parts)


def _rows(rows: Sequence[Row], numbers: Sequence[int] | NDArray[np.int64], parts: Sequence[Part]) -> Rows:
    return Rows(rows, numbers, _name(parts), parts[0].unit, tuple(parts) if len(parts) > 1 else ())


def _numbered(files: Sequence[DataFile], parts: list[Part]) -> Iterator[Numbered]:
    """The rows of all files; each file is added to ``parts`` when it is opened."""
    last = 0
    for file in files:
        part, empty = _part(last, file), True
        parts.append(part)
        for number, row in read_rows(file):
            last, empty = part.before + number, False
            yield last, row
        if empty and len(files) > 1:
            logger.warning("abkd: %s has no rows", printable(file.path))


def _part(before: int, file: DataFile) -> Part:
    return Part(before, printable(file.path.name), unit_of(file))


def _of_dataset(table: Any, name: str) -> Rows:
    """The rows of a ``datasets.Dataset``, cached like those of files."""
    classes = _class_names(table)
    if not hasattr(table, "__len__") or len(table) <= FEW:
        rows = [*map(row_of_table, _checked_rows(table, name or "the dataset"))]
        return replace(_number(rows, name), class_names=classes)

    def build(file: Path) -> dict[str, object]:
        return write_rows(file, progress(enumerate(_by_batches(table), 1), len(table), "reading the data"))

    content = hashlib.blake2b(digest_size=16)
    for batch in table.with_format("arrow").iter(_AT_ONCE):
        content.update(_bytes_of(batch))
    stored = StoredRows(keep(f"rows-{key(content.hexdigest())}", build).folder)
    return Rows(stored, stored.numbers, name, class_names=classes)


def _class_names(table: datasets.Dataset) -> dict[str, tuple[str, ...]]:
    """The names of the classes by column, for columns of classes."""
    import datasets

    kinds = (table.features or {}).items()
    return {column: tuple(kind.names) for column, kind in kinds if isinstance(kind, datasets.ClassLabel)}


def _by_batches(table: Any) -> Iterator[Row]:
    for batch in table.iter(_AT_ONCE):
        for values in zip(*batch.values(), strict=True):
            yield row_of_table(dict(zip(batch, values, strict=True)))


def _bytes_of(table: pyarrow.Table) -> pyarrow.Buffer:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _name(parts: Sequence[Part]) -> str:
    names = [part.name for part in parts]
    if len(names) <= _NAMED_FILES:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} more files"


def printable(path: str | Path) -> str:
    """A path for display: bytes that are not valid text are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _number(rows: Sequence[Row], name: str = "") -> Rows:
    return Rows(rows, range(1, len(rows) + 1), name)


def _checked_rows(rows: Iterable[object], name: str) -> list[Row]:
    if isinstance(rows, Mapping):
        parts = ", ".join(map(str, rows))
        raise DataError(f"expected one table of rows, got a mapping of {parts}: choose one of them")
    if type(rows).__name__ == "DataFrame":
        raise DataError(
            "expected an iterable of rows, got a DataFrame: use datasets.Dataset.from_pandas(frame), or a file"
        )
    checked: list[Row] = []
    for number, row in enumerate(_each(rows, name), 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{name}, row {number}: expected an object with columns, got {type(row).__name__}")
        checked.append(row)
    return checked


def _each(rows: Iterable[object], name: str) -> Iterator[object]:
    """The rows one by one, by index if there is a length: Python would take an IndexError from inside for the end."""
    source: Any = rows
    by_number = hasattr(source, "__len__") and hasattr(source, "__getitem__") and not hasattr(source, "__iter__")
    at = 0
    try:
        if by_number:
            for at in range(len(source)):
                yield source[at]
        else:
            for at, row in enumerate(source, 1):  # noqa: B007
                yield row
    except AbkdError:
        raise
    except Exception as error:  # raised by user code
        raise DataError(f"{name}, row {at + 1}: {cannot_be_read(error)}. Fix it, or remove it") from error


def open_table(name: str, config: str | None, split: str, way_out: str, *, streaming: bool = False) -> Any:
    """The ``datasets.Dataset`` of one split, from the hub or a folder; raises DataError with ``way_out``.

    ``streaming``: return an ``IterableDataset``, which is read while it is downloaded.
    """
    import datasets

    try:
        if is_saved(Path(name)):
            found = datasets.load_from_disk(name)
            found = found[split] if isinstance(found, datasets.DatasetDict) else found
            return found.to_iterable_dataset() if streaming else found
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, KeyError) as error:
        which = f"{name!r} (config {config}, split {split!r})"
        raise DataError(f"cannot load dataset {which}: {error}. {way_out}") from error


def is_saved(folder: Path) -> bool:
    """Whether the datasets library saved a dataset, or several splits, in this folder."""
    return any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
