"""The order of the rows: a function of seed and epoch, and the same for one process as for several."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler

from abkd.data import LengthGroupedSampler, StreamedDataset
from abkd.data.prepared import ExampleDataset

Key = int | tuple[int, int]
"""An index, or (epoch, index)."""


class PadToMultiple(Dataset[object]):
    """Rows, then padding until ``multiple`` divides their number.

    Every process needs as many batches as the others. What is usually done, repeating rows, would count these twice in
    the gradient and in every metric.
    """

    def __init__(self, rows: ExampleDataset, multiple: int) -> None:
        self.rows, self._length = rows, len(rows) + -len(rows) % multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Key) -> object:
        index = key if isinstance(key, int) else key[1]
        return self.rows[key] if index < len(self.rows) else self.rows.padding_example()


class Shuffled(Sampler[int]):
    """All indices in an order that depends on ``(seed, epoch)`` alone."""

    def __init__(self, length: int, *, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        """One after the other, as ``random.sample`` chooses: the first comes at once, of however many."""
        chance, left = random.Random(f"{self.seed}/{self.epoch}"), list(range(self.length))
        while left:
            place = chance.randrange(len(left))
            left[place], left[-1] = left[-1], left[place]
            yield left.pop()


class AsTheyCome(Shuffled):
    """All indices in turn: rows of a stream, which are shuffled where they are read."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


class TrainOrder(Sampler[Any]):
    """The real rows in the order of ``inner``, then padding; with the epoch beside each where ``indexed_by_epoch``.

    What a row of an epoch is then follows from what it is asked for by, whichever process of a data loader is asked.
    It has no ``set_epoch``: some wrappers of accelerate would call that with a count of their own, which is 0 again
    after a resume.
    """

    def __init__(self, inner: Shuffled | LengthGroupedSampler, length: int, *, indexed_by_epoch: bool = False) -> None:
        self.inner, self.length, self.indexed_by_epoch = inner, length, indexed_by_epoch

    def begin_epoch(self, epoch: int) -> None:
        """Another order for another epoch."""
        self.inner.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        epoch = self.inner.epoch
        for index in itertools.chain(self.inner, range(len(self.inner), self.length)):
            yield (epoch, index) if self.indexed_by_epoch else index


def train_order(dataset: ExampleDataset | PadToMultiple, *, batch_size: int, by_length: bool, seed: int) -> TrainOrder:
    """The order of an epoch; ``batch_size`` over all processes, where rows of similar length share a batch."""
    rows = dataset.rows if isinstance(dataset, PadToMultiple) else dataset
    inner: Shuffled | LengthGroupedSampler = Shuffled(len(rows), seed=seed)
    if by_length and rows.lengths:
        inner = LengthGroupedSampler(rows.lengths, batch_size, seed=seed)
    if isinstance(rows, StreamedDataset):
        inner = AsTheyCome(len(rows), seed=seed)
    return TrainOrder(inner, len(dataset), indexed_by_epoch=rows.indexed_by_epoch)
