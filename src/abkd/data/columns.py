"""Columns of token lists, one list per example: in memory or memory-mapped, joined, repeated."""

from __future__ import annotations

import bisect
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc

Numbers = np.ndarray

_CHUNK = 1 << 16  # lists in one array, whose offsets are 32 bits wide


class Column(ABC):
    """A list of integers or booleans for each example. ``lengths``: int64 [number of examples]."""

    lengths: Numbers

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def __getitem__(self, index: int) -> list[int]: ...

    @abstractmethod
    def pieces(self) -> Iterator[Numbers]:
        """All values in order, int32 or bool, in arrays of arbitrary length."""


class Lists(Column):
    """Arrow lists, which take 4 bytes per token instead of 36. ``place``: file and column they are mapped from."""

    def __init__(self, chunks: Sequence[pyarrow.ListArray], place: tuple[Path, str] | None = None) -> None:
        self._chunks, self._place = list(chunks), place
        self._offsets = [chunk.offsets.to_numpy() for chunk in self._chunks]
        self._starts = np.cumsum([0, *map(len, self._chunks)]).tolist()
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int64)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Lists:
        """A column of these lists, in memory."""
        flags = isinstance(next((row[0] for row in rows if len(row)), None), bool)
        kind = pyarrow.list_(pyarrow.bool_() if flags else pyarrow.int32())
        return cls([pyarrow.array(rows[i : i + _CHUNK], type=kind) for i in range(0, max(len(rows), 1), _CHUNK)])

    def __getitem__(self, index: int) -> list[int]:
        index = range(len(self))[index]
        chunk = bisect.bisect_right(self._starts, index) - 1
        start, end = self._offsets[chunk][index - self._starts[chunk] :][:2].tolist()
        return self._chunks[chunk].values.slice(start, end - start).to_numpy(zero_copy_only=False).tolist()

    def pieces(self) -> Iterator[Numbers]:
        """See :class:`Column`."""
        chunks = self._chunks if self._place is None else _read_once(*self._place)
        return (chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks)

    def __reduce__(self) -> tuple[object, ...]:  # workers get the location, not the data
        return (Lists, (self._chunks,)) if self._place is None else (mapped, self._place)


def mapped(file: Path, name: str) -> Lists:
    """A memory-mapped column of an Arrow file."""
    return Lists(read_arrow(file)[name].chunks, (file, name))


def read_arrow(file: Path) -> pyarrow.Table:
    """A memory-mapped table."""
    with pyarrow.memory_map(str(file)) as source:
        return pyarrow.ipc.open_file(source).read_all()


def _read_once(file: Path, name: str) -> Iterator[pyarrow.ListArray]:
    """The arrays of a column one by one, not memory-mapped: pages that are mapped and read count as memory."""
    with pyarrow.memory_map(str(file)) as source:
        field = pyarrow.ipc.open_file(source).schema.get_field_index(name)
    options = pyarrow.ipc.IpcReadOptions(included_fields=[field])
    with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_file(source, options=options) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index).column(0)


def fingerprint_of(columns: Mapping[str, Column]) -> str:
    """16 hexadecimal digits of all lengths and values; equal on every machine."""
    digest = hashlib.sha256()
    for key, column in sorted(columns.items()):
        digest.update(key.encode() + column.lengths.tobytes())
        for piece in column.pieces():
            digest.update(piece.tobytes())
    return digest.hexdigest()[:16]


class Repeated(Column):
    """The same few lists, repeated in turn."""

    def __init__(self, lists: Sequence[Sequence[int]], length: int) -> None:
        self._lists = lists
        self.lengths = np.resize(np.array([len(each) for each in lists], dtype=np.int64), length)

    def __getitem__(self, index: int) -> list[int]:
        return list(self._lists[range(len(self))[index] % len(self._lists)])

    def pieces(self) -> Iterator[Numbers]:
        """See :class:`Column`."""
        return (np.array(self._lists[i % len(self._lists)], dtype=np.int32) for i in range(len(self)))


class Groups:
    """Groups of examples to join: ``of(g)`` returns the indices in group g."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self._members = np.fromiter((i for group in groups for i in group), dtype=np.int64)
        self._ends = np.cumsum(np.fromiter(map(len, groups), dtype=np.int64, count=len(groups)))

    def __len__(self) -> int:
        return len(self._ends)

    def of(self, group: int) -> list[int]:
        """The members of a group in order."""
        start = self._ends[group - 1] if group else 0
        return self._members[start : self._ends[group]].tolist()

    def total(self, lengths: Numbers) -> Numbers:
        """The sum over the members of each group."""
        return np.add.reduceat(lengths[self._members], np.concatenate([[0], self._ends[:-1]]))


class Joined(Column):
    """The lists of each group, concatenated."""

    def __init__(self, column: Column, groups: Groups) -> None:
        self._column, self._groups, self.lengths = column, groups, groups.total(column.lengths)

    def __getitem__(self, index: int) -> list[int]:
        return [value for member in self._groups.of(range(len(self))[index]) for value in self._column[member]]

    def pieces(self) -> Iterator[Numbers]:
        """See :class:`Column`."""
        return (_array(self[index]) for index in range(len(self)))


class Segments(Column):
    """For each token, the index (from 0) of its example within the group."""

    def __init__(self, lengths: Numbers, groups: Groups) -> None:
        self._of, self._groups, self.lengths = lengths, groups, groups.total(lengths)

    def __getitem__(self, index: int) -> list[int]:
        members = self._groups.of(range(len(self))[index])
        return np.repeat(np.arange(len(members)), self._of[members]).tolist()

    def pieces(self) -> Iterator[Numbers]:
        """See :class:`Column`."""
        return (_array(self[index]) for index in range(len(self)))


def _array(values: list[int]) -> Numbers:
    return np.array(values, dtype=np.bool_ if values and isinstance(values[0], bool) else np.int32)
