"""Rows, each with the number under which its owner knows it, so that an error found later still names its line."""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One of several files: its numbers are those of all rows less ``before``."""

    before: int
    name: str
    unit: str


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Row]):
    """Rows in order, each with its number at the source (1-based): ``unit`` says whether that is a line or a row.

    ``parts``: the files, where there are several; numbers then go on from one to the next.
    """

    rows: Sequence[Row]
    numbers: Sequence[int]
    name: str = ""
    unit: str = "row"
    parts: tuple[Part, ...] = ()

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
        chosen = list(indices)
        return replace(self, rows=[self.rows[i] for i in chosen], numbers=[self.numbers[i] for i in chosen])

    def place(self, number: int) -> str:
        """Where the row with this number is: its line or row, and in which of several files."""
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


def canonical(value: Any) -> str:
    """A text of a value that does not depend on the order of its keys."""
    return json.dumps(value, sort_keys=True, default=str)
