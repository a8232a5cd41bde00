"""Rows from files, the hub or memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from abkd.data.files import READABLE, DataFile, find_files
from abkd.data.messages import row_of_table
from abkd.data.readers import read_rows, unit_of
from abkd.data.rows import Part, Row, Rows
from abkd.errors import DataError

logger = logging.getLogger("abkd")

_NAMED_FILES = 3


def load_rows(
    source: str | Path | Sequence[str | Path] | Iterable[Row], *, config: str | None = None, split: str = "train"
) -> Rows:
    """Rows of files, of a dataset on the hub or on disk, or of an iterable of dicts.

    Files are ``.jsonl .json .csv .parquet``, the first three also compressed (``.gz .bz2 .xz .zst``): one, several in a
    list, or a pattern such as ``data/*.jsonl``. ``config`` and ``split`` choose inside a hub dataset. Raises DataError:
    file not there, malformed (with the line number), unknown dataset, not rows, or no rows at all.
    """
    if isinstance(source, Rows):
        rows = source
    elif _names_files(source) and (files := find_files(source)):
        rows = _read_files(files)
    elif isinstance(source, (str, Path)):
        rows = _number(_load_dataset(str(source), config, split), str(source))
    else:
        checked = _checked_rows(source, "the data set")
        rows = _number([*map(row_of_table, checked)] if hasattr(source, "features") else checked)
    if not len(rows):
        raise DataError(f"{rows.name or 'the data set'} has no rows: expected at least one")
    return rows


def _names_files(source: Any) -> TypeGuard[str | Path | Sequence[str | Path]]:
    if isinstance(source, (list, tuple)):
        return bool(source) and all(isinstance(name, (str, Path)) for name in source)
    return isinstance(source, (str, Path))


def _read_files(files: Sequence[DataFile]) -> Rows:
    rows: list[Row] = []
    numbers: list[int] = []
    parts: list[Part] = []
    for file in files:
        before, known = numbers[-1] if numbers else 0, len(rows)
        for number, row in read_rows(file):
            rows.append(row)
            numbers.append(before + number)
        parts.append(Part(before, printable(file.path.name), unit_of(file)))
        if len(rows) == known and len(files) > 1:
            logger.warning("abkd: %s has no rows", printable(file.path))
    return Rows(rows, numbers, _name(parts), parts[0].unit, tuple(parts) if len(parts) > 1 else ())


def _name(parts: Sequence[Part]) -> str:
    names = [part.name for part in parts]
    if len(names) <= _NAMED_FILES:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} more files"


def printable(path: str | Path) -> str:
    """A path for the eye: what of it is no text is escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _number(rows: Sequence[Row], name: str = "") -> Rows:
    return Rows(rows, range(1, len(rows) + 1), name)


def _checked_rows(rows: Iterable[Any], name: str) -> list[Row]:
    if isinstance(rows, Mapping):
        parts = ", ".join(map(str, rows))
        raise DataError(f"expected one table of rows, got a mapping of {parts}: choose one of its parts")
    checked = list(rows)
    for number, row in enumerate(checked, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{name}, row {number}: expected an object with columns, got {type(row).__name__}")
    return checked


def _load_dataset(name: str, config: str | None, split: str) -> list[Row]:
    way_out = f"Files are read that end in {READABLE}"
    return [*map(row_of_table, _checked_rows(open_table(name, config, split, way_out), name))]


def open_table(name: str, config: str | None, split: str, way_out: str) -> Any:
    """The ``datasets.Dataset`` of one split, from the hub or a folder; else DataError with the way out."""
    import datasets

    try:
        if is_saved(Path(name)):
            found = datasets.load_from_disk(name)
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError) as error:
        which = f"{name!r} (config {config}, split {split!r})"
        raise DataError(f"cannot load dataset {which}: {error}. {way_out}") from error


def is_saved(folder: Path) -> bool:
    """Whether the datasets library saved a dataset, or several splits, into this folder."""
    return any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
