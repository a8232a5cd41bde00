"""Sampler that batches rows of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

_BATCHES_PER_POOL = 50  # rows are sorted by length within a random pool of this size


class LengthGroupedSampler(Sampler[int]):
    """Indices in an order that puts similar lengths into the same batch.

    The order depends only on ``(seed, epoch)``, so a resumed run sees the same rows as an uninterrupted one. Batches
    come in random order, except that the one with the longest row is first (so that running out of memory shows at
    once) and an incomplete one is last.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int = 0) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches():
            yield from batch

    def _batches(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        order = rng.sample(range(len(self)), len(self))
        pool = self.batch_size * min(_BATCHES_PER_POOL, max(1, len(self) // (4 * self.batch_size)))
        grouped: list[int] = []
        for start in range(0, len(self), pool):
            grouped += sorted(order[start : start + pool], key=lambda index: -self.lengths[index])
        whole = len(self) - len(self) % self.batch_size
        batches = [grouped[start : start + self.batch_size] for start in range(0, whole, self.batch_size)]
        rng.shuffle(batches)
        if batches:
            batches.insert(0, batches.pop(max(range(len(batches)), key=lambda i: self._longest(batches[i]))))
        return [*batches, grouped[whole:]]

    def _longest(self, batch: Sequence[int]) -> int:
        return max(self.lengths[index] for index in batch)
