"""The order of the rows: a function of seed and epoch, and the same for one process as for several."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Dataset, Sampler

from abkd.data import Example, LengthGroupedSampler, TokenizedDataset, stand_in


class Evened(Dataset[Example]):
    """Rows, then empty ones until ``multiple`` divides their number.

    Every process needs as many batches as the others. What is usually done, repeating rows, would count these twice in
    the gradient and in every metric. An empty row is the first token of a row: nothing predicts it.
    """

    def __init__(self, rows: TokenizedDataset, multiple: int) -> None:
        self.rows, self._length = rows, len(rows) + -len(rows) % multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if index < len(self.rows):
            return self.rows[index]
        return stand_in(self.rows[0])


class Shuffled(Sampler[int]):
    """All indices in an order that depends on ``(seed, epoch)`` alone."""

    def __init__(self, length: int, *, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(random.Random(f"{self.seed}/{self.epoch}").sample(range(self.length), self.length))


class TrainOrder(Sampler[int]):
    """The real rows in the order of ``inner``, then the empty ones.

    It has no ``set_epoch``: some wrappers of accelerate would call that with a count of their own, which is 0 again
    after a resume.
    """

    def __init__(self, inner: Shuffled | LengthGroupedSampler, length: int) -> None:
        self.inner, self.length = inner, length

    def begin_epoch(self, epoch: int) -> None:
        """Another order for another epoch."""
        self.inner.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from self.inner
        yield from range(len(self.inner), self.length)


def train_order(dataset: TokenizedDataset | Evened, *, batch_size: int, by_length: bool, seed: int) -> TrainOrder:
    """The order of an epoch; ``batch_size`` over all processes, where rows of similar length share a batch."""
    rows = dataset.rows if isinstance(dataset, Evened) else dataset
    inner = LengthGroupedSampler(rows.lengths, batch_size, seed=seed) if by_length else Shuffled(len(rows), seed=seed)
    return TrainOrder(inner, len(dataset))
