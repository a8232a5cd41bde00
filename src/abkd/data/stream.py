"""Training rows that are read as they are needed, for data that fits neither memory nor disk.

Nothing is stored, so nothing is known about a row before it is trained on; docs/data.md lists the consequences.
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
"""Number of rows that are checked before the first step."""
WINDOW = 10_000
"""Size of the shuffle buffer, in rows."""

Placed = tuple[str, Row]
"""The location of a row, and the row."""


class RowStream(ABC):
    """Rows that can be read in order, any number of times. ``name``: for messages."""

    name: str

    @abstractmethod
    def read(self) -> Iterator[Placed]:
        """The rows, starting with the first; raises DataError if one cannot be read."""

    def first(self) -> list[Placed]:
        """The rows that are checked before the first step."""
        return list(itertools.islice(self.read(), HEAD))

    @abstractmethod
    def facts(self) -> list[object]:
        """Plain values that identify the data without reading it, such as names and sizes."""


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

    def facts(self) -> list[object]:
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

    def facts(self) -> list[object]:
        return [self.name, self.config, self.split]


def stream_rows(
    source: str | Path | Sequence[str | Path], *, config: str | None = None, split: str = "train"
) -> RowStream:
    """The rows of files (as in ``load_rows``), or of a dataset on the hub, as a stream to train on.

    Raises DataError: a file that does not exist, or of an unsupported type.
    """
    files = find_files(source)
    if files:
        return _OfFiles(tuple(files))
    return _OfHub(str(source), config, split)


class StreamedDataset(ExampleDataset):
    """Examples of a stream, as many as a run trains on, created on access.

    Rows are shuffled within a buffer of 10 000; after the last row, the stream starts over. An example depends only on
    ``seed`` and its index, so several processes, each of which reads all rows, agree, and a resumed run continues where
    it stopped. If a row has several examples, each pass picks one at random. A row that cannot be used raises, or, with
    ``on_bad_row="drop"``, becomes an example without trained tokens.

    ``account``: counts of the first rows, which were checked. ``head``: their examples.
    """

    indexed_by_epoch = True  # keeps the order of the stream

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
        self._next = length  # so that the first access starts the stream

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        index = key if isinstance(key, int) else key[1]
        example = self._example(index, *self._row(index))
        if self._chunks:
            example["pretrain_ids"] = list(self._chunks[index % len(self._chunks)])
        return example

    def __getstate__(self) -> dict[str, object]:  # other processes get the source, not the position
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
        """16 hexadecimal digits of the names and sizes of the files, whose content has not been read."""
        return hashlib.sha256(json.dumps(self.stream.facts()).encode()).hexdigest()[:16]

    def spread(self, count: int) -> list[int]:
        """The first examples, since later ones take long to reach."""
        return list(range(min(count, len(self))))

    def padding_example(self) -> Example:
        """The first token of the first row, which nothing predicts."""
        return padding_example(self.head[0])

    def _row(self, index: int) -> Placed:
        if index < self._next:
            self._rows, self._next = self._shuffled(), 0
        place, row = next(itertools.islice(self._rows, index - self._next, None))
        self._next = index + 1
        return place, row

    def _shuffled(self) -> Iterator[Placed]:
        """The rows in training order, endlessly."""
        for turn in itertools.count():
            rows = self.stream.read()
            for number in itertools.count():
                window = list(itertools.islice(rows, WINDOW))
                if not window and not number:
                    raise DataError(f"{self.stream.name} no longer has rows, but had some when the run started")
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
                    f"{self.stream.name}, {place}: {error}. Fix it, or set on_bad_row: drop to skip such rows"
                ) from error
            logger.warning("abkd: %s, %s is skipped: %s", self.stream.name, place, error)
            return self.padding_example()
        return random.Random(f"{self._seed}/{index}").choice(examples)
