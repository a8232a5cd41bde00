"""Rows with their numbers in the source, so that an error found later can still name the line."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]


class Table(Sequence[Row]):
    """Rows that are not in memory."""

    @property
    @abstractmethod
    def columns(self) -> set[str]:
        """The columns that any of the rows has."""

    @abstractmethod
    def take(self, indices: npt.NDArray[np.int64]) -> Table:
        """The rows at ``indices``, still not in memory."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of several files; ``before`` is subtracted from a row's number to get its number in this file."""

    before: int
    name: str
    unit: str


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Row]):
    """Rows in order, each with its number in the source (1-based), which counts lines or rows (``unit``).

    ``parts``: the files, if there are several; numbers then continue from one to the next. ``class_names``: for columns
    of the type ``ClassLabel`` of the datasets library, the names of the classes in order.
    """

    rows: Sequence[Row]
    numbers: Sequence[int] | npt.NDArray[np.int64]
    name: str = ""
    unit: str = "row"
    parts: tuple[Part, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at ``indices``, which keep their numbers."""
        chosen = np.fromiter(indices, dtype=np.int64)
        if isinstance(self.rows, Table):
            return replace(self, rows=self.rows.take(chosen), numbers=np.asarray(self.numbers)[chosen])
        rows, numbers = ([values[i] for i in chosen.tolist()] for values in (self.rows, self.numbers))
        return replace(self, rows=rows, numbers=numbers)

    @property
    def columns(self) -> set[str]:
        """The columns that any of the rows has."""
        return self.rows.columns if isinstance(self.rows, Table) else set(itertools.chain.from_iterable(self.rows))

    def place(self, number: int) -> str:
        """The location of the row with this number: its line or row, and its file if there are several."""
        if not self.parts:
            return f"{self.unit} {number}"
        part = self.parts[bisect.bisect_left(self.parts, number, key=lambda part: part.before) - 1]
        return f"{part.name}, {part.unit} {number - part.before}"


def fingerprint(rows: Iterable[Row]) -> str:
    """16 hexadecimal digits that change when any row, or the order of the rows, changes; equal on every machine."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def canonical(value: object) -> str:
    """JSON of a value, independent of the order of its keys."""
    return json.dumps(value, sort_keys=True, default=str)
