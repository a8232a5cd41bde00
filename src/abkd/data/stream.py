"""Training rows that are read when their turn comes: for data that fits neither memory nor disk.

Nothing of them is kept, so nothing is known of a row before it is trained on; docs/data.md says what that costs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkd.data.bad_rows import BadRowError, OnBadRow
from abkd.data.completion import padding_example
from abkd.data.files import DataFile, find_files
from abkd.data.load import READ, open_table, printable
from abkd.data.messages import row_of_table
from abkd.data.prepared import ExampleDataset
from abkd.data.readers import read_rows, unit_of
from abkd.data.rows import Row
from abkd.data.steps import Steps
from abkd.data.tally import Tally
from abkd.data.tokenize import Example
from abkd.errors import DataError

logger = logging.getLogger("abkd")

HEAD = 1_000
"""How many rows are looked at before the first step."""
WINDOW = 10_000
"""Rows in memory, which are shuffled among themselves."""

Placed = tuple[str, Row]
"""A row, and where it is."""


class RowStream(ABC):
    """Rows that can be read one after the other, as often as one likes. ``name``: for messages."""

    name: str

    @abstractmethod
    def read(self) -> Iterator[Placed]:
        """The rows, from the first one on; raises DataError where one cannot be read."""

    def first(self) -> list[Placed]:
        """The rows that are looked at before the first step."""
        return list(itertools.islice(self.read(), HEAD))

    @abstractmethod
    def facts(self) -> list[Any]:
        """Plain values that change when the data does, as far as that can be told without reading it."""


@dataclass(frozen=True)
class _OfFiles(RowStream):
    files: tuple[DataFile, ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        names = [printable(file.path.name) for file in self.files]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files"

    def read(self) -> Iterator[Placed]:
        for file in self.files:
            where = f"{printable(file.path.name)}, " if len(self.files) > 1 else ""
            for number, row in read_rows(file):
                yield f"{where}{unit_of(file)} {number}", row

    def facts(self) -> list[Any]:
        return [[printable(file.path.name), file.path.stat().st_size] for file in self.files]


@dataclass(frozen=True)
class _OfHub(RowStream):
    name: str
    config: str | None
    split: str

    def read(self) -> Iterator[Placed]:
        table = open_table(self.name, self.config, self.split, READ, streaming=True)
        for number, row in enumerate(table, 1):
            yield f"row {number}", row_of_table(row)

    def facts(self) -> list[Any]:
        return [self.name, self.config, self.split]


def stream_rows(source: str | Path | Sequence[str | Path], *, config: str | None = None, split: str = "train") -> Any:
    """The rows of files (all that ``load_rows`` takes), or of a dataset on the hub, as a stream to train on.

    Raises DataError: a file that is not there, or of a kind that is not read.
    """
    files = find_files(source)
    if files:
        return _OfFiles(tuple(files))
    return _OfHub(str(source), config, split)


class StreamedDataset(ExampleDataset):
    """Examples of a stream, as many as a run trains on, each made when it is asked for.

    They are shuffled among the 10 000 that are in memory; after the last row comes the first one again. An example
    depends on ``seed`` and its index alone, so several processes, each of which reads all rows, agree, and a resumed
    run goes on where it was. Of a row that makes several examples one is taken each time, by chance. A row that cannot
    be used is an error, or with ``on_bad_row="drop"`` an example without trained tokens.

    ``account``: of the first rows, which were looked at. ``head``: their examples.
    """

    indexed_by_epoch = True  # so that the order stays the stream's

    def __init__(
        self,
        stream: RowStream,
        first: Sequence[Placed],
        steps: Steps,
        *,
        length: int,
        seed: int,
        on_bad_row: OnBadRow,
        name: str,
    ) -> None:
        self.stream, self.steps, self.name = stream, steps, name
        self.tally, self.head = Tally(), list[Example]()
        for place, row in first:
            self.head += self.tally.examples_of(row, place, steps)
        self.account = self.tally.account()
        self.dropped = {}  # not known before the end
        self._length, self._seed, self._on_bad_row = length, seed, on_bad_row
        self._chunks: Sequence[Sequence[int]] = ()
        self._rows: Iterator[Placed] = iter(())
        self._next = length  # so that the first one asked for begins the stream

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        index = key if isinstance(key, int) else key[1]
        example = self._example(index, *self._row(index))
        if self._chunks:
            example["pretrain_ids"] = list(self._chunks[index % len(self._chunks)])
        return example

    def __getstate__(self) -> dict[str, Any]:  # to another process goes what is read, not how far it was read
        return {**self.__dict__, "_rows": iter(()), "_next": self._length}

    def with_pretraining(self, chunks: Sequence[Sequence[int]]) -> StreamedDataset:
        """The same examples, each with a chunk of plain text (in turn) for the language-modelling term."""
        self._chunks = chunks
        return self

    @property
    def trained_tokens(self) -> int:
        """Number of targets in the first rows."""
        return sum(sum(example["trained"]) for example in self.head)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the names and sizes of the files: what is in them has not been read."""
        return hashlib.sha256(json.dumps(self.stream.facts()).encode()).hexdigest()[:16]

    def spread(self, count: int) -> list[int]:
        """The first ones: others are a long way off."""
        return list(range(min(count, len(self))))

    def padding_example(self) -> Example:
        """The first token of the first row: nothing predicts it."""
        return padding_example(self.head[0])

    def _row(self, index: int) -> Placed:
        if index < self._next:
            self._rows, self._next = self._shuffled(), 0
        place, row = next(itertools.islice(self._rows, index - self._next, None))
        self._next = index + 1
        return place, row

    def _shuffled(self) -> Iterator[Placed]:
        """The rows in the order of training, without end."""
        for turn in itertools.count():
            rows = self.stream.read()
            for number in itertools.count():
                window = list(itertools.islice(rows, WINDOW))
                if not window and not number:
                    raise DataError(f"{self.stream.name} has no rows any more: it had some when the run began")
                if not window:
                    break
                random.Random(f"{self._seed}/{turn}/{number}").shuffle(window)
                yield from window

    def _example(self, index: int, place: str, row: Row) -> Example:
        try:
            examples = self.steps(row).examples
        except BadRowError as error:
            if self._on_bad_row == "error":
                raise DataError(
                    f"{self.stream.name}, {place}: {error}. Repair it, or set on_bad_row: drop to leave such rows out"
                ) from error
            logger.warning("abkd: %s, %s is left out: %s", self.stream.name, place, error)
            return self.padding_example()
        return random.Random(f"{self._seed}/{index}").choice(examples)
