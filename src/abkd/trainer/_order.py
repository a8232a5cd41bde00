"""The order of the rows, and when the learning rate falls.

Both are functions of seed and epoch, and the same for one process as for several.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler

from abkd.config import DistillConfig
from abkd.data import LengthGroupedSampler, TokenizedDataset
from abkd.data.prepared import Prepared

Key = int | tuple[int, int]
"""An index, or (epoch, index)."""


class Evened(Dataset[Any]):
    """Rows, then empty ones until ``multiple`` divides their number.

    Every process needs as many batches as the others. What is usually done, repeating rows, would count these twice in
    the gradient and in every metric.
    """

    def __init__(self, rows: Prepared, multiple: int) -> None:
        self.rows, self._length = rows, len(rows) + -len(rows) % multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Key) -> Any:
        index = key if isinstance(key, int) else key[1]
        return self.rows[key] if index < len(self.rows) else self.rows.stand_in()


class Shuffled(Sampler[int]):
    """All indices in an order that depends on ``(seed, epoch)`` alone."""

    def __init__(self, length: int, *, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(random.Random(f"{self.seed}/{self.epoch}").sample(range(self.length), self.length))


class TrainOrder(Sampler[Any]):
    """The real rows in the order of ``inner``, then the empty ones; with the epoch beside each where ``keyed``.

    What a row of an epoch is then follows from what it is asked for by, whichever process of a data loader is asked.
    It has no ``set_epoch``: some wrappers of accelerate would call that with a count of their own, which is 0 again
    after a resume.
    """

    def __init__(self, inner: Shuffled | LengthGroupedSampler, length: int, *, keyed: bool = False) -> None:
        self.inner, self.length, self.keyed = inner, length, keyed

    def begin_epoch(self, epoch: int) -> None:
        """Another order for another epoch."""
        self.inner.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        epoch = self.inner.epoch
        for index in (*self.inner, *range(len(self.inner), self.length)):
            yield (epoch, index) if self.keyed else index


def train_order(dataset: Prepared | Evened, *, batch_size: int, by_length: bool, seed: int) -> TrainOrder:
    """The order of an epoch; ``batch_size`` over all processes, where rows of similar length share a batch."""
    rows = dataset.rows if isinstance(dataset, Evened) else dataset
    inner: Shuffled | LengthGroupedSampler = Shuffled(len(rows), seed=seed)
    if by_length and isinstance(rows, TokenizedDataset):
        inner = LengthGroupedSampler(rows.lengths, batch_size, seed=seed)
    return TrainOrder(inner, len(dataset), keyed=rows.keyed)


def multi_step(args: DistillConfig, rows: int) -> Callable[[int], float]:
    """Step -> factor of the learning rate: ``lr_decay`` for each milestone passed, after a linear warm-up.

    ``rows``: those of an epoch.
    """
    per_epoch = _steps_per_epoch(args, rows)
    milestones: Any = args.lr_milestones
    after = [round(epoch * per_epoch) for epoch in milestones]
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    warmup = args.get_warmup_steps(total)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (warmup + 1)) * args.lr_decay ** sum(step >= each for each in after)

    return factor


def epochs(args: DistillConfig, rows: int) -> int:
    """How many epochs of so many rows a run begins, as transformers counts them."""
    if args.max_steps > 0:
        return math.ceil(args.max_steps / _steps_per_epoch(args, rows))
    return math.ceil(args.num_train_epochs)


def _steps_per_epoch(args: DistillConfig, rows: int) -> int:
    size = args.train_batch_size * args.world_size
    batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
