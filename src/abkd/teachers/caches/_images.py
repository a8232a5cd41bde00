"""What of a run's images is asked about, and what of that is not stored yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from abkd.data import View
from abkd.data.images import label_of
from abkd.teachers.caches._keys import EncodeBatch, example_key, image_sequence
from abkd.teachers.caches._store import Store

if TYPE_CHECKING:
    from abkd.data.images import ImageDataset, ImageExample

Key = int | tuple[int, int]


@dataclass(frozen=True)
class EpochImages:
    """The images of a data set as each epoch of a run has them; one epoch where nothing is augmented.

    ``batch_size``: how many the teacher reads at a time. ``order``: epoch -> what is asked for, in this order; a cache
    that is built in the order and the batches of training holds what the live teacher would say in it, to the bit.
    """

    dataset: ImageDataset
    epochs: int = 1
    batch_size: int = 1
    order: Callable[[int], Iterable[Key]] | None = None

    def __len__(self) -> int:
        epochs = self.epochs if self.dataset.indexed_by_epoch else 1
        return epochs * len(self.dataset)

    def __iter__(self) -> Iterator[ImageExample]:
        return map(self._example, range(len(self)))

    def some(self, most: int) -> Iterator[ImageExample]:
        """At most so many, from all epochs; the same ones each time."""
        chosen = range(len(self))
        return map(self._example, chosen if len(self) <= most else sorted(random.Random(0).sample(chosen, most)))

    def batches(self, share: tuple[int, int]) -> Iterator[list[Key]]:
        """What to ask for, as far as it is this process' ``share``: all that becomes of an image stays in one."""
        for epoch in range(len(self) // len(self.dataset)):
            keys = self.order(epoch) if self.order is not None else self._plain(epoch)
            mine = [key for key in keys if (key if isinstance(key, int) else key[1]) % share[1] == share[0]]
            yield from (mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size))
        if self.dataset.indexed_by_epoch and share[0] == 0:
            yield [0]  # without augmentation it stands in where a process has no images left

    def _plain(self, epoch: int) -> Iterator[Key]:
        return ((epoch, index) if self.dataset.indexed_by_epoch else index for index in range(len(self.dataset)))

    def _example(self, number: int) -> ImageExample:
        epoch, index = divmod(number, len(self.dataset))
        return self.dataset[(epoch, index) if self.dataset.indexed_by_epoch else index]


def images_in(passes: Sequence[EpochImages], share: tuple[int, int]) -> int:
    """How many images there are to look at in this process."""
    index, number = share
    looked_at = 0
    for each in passes:
        epochs, padding_example = len(each) // len(each.dataset), each.dataset.indexed_by_epoch and index == 0
        looked_at += epochs * len(range(index, len(each.dataset), number)) + padding_example
    return looked_at


def missing_images(
    store: Store, passes: Iterable[EpochImages], share: tuple[int, int], workers: int = 0, *, labelled: bool
) -> Iterator[EncodeBatch]:
    """Batches of what is not stored, once each; ``done`` counts what was looked at.

    Args:
        workers: processes that read the images.
        labelled: whether an image with another label is another row.
    """
    found, looked_at = set(store.places), 0
    for each in passes:
        loader: Any = torch.utils.data.DataLoader(
            each.dataset,
            batch_sampler=each.batches(share),
            collate_fn=list,
            num_workers=workers,
        )
        for examples in loader:
            looked_at += len(examples)
            new: dict[bytes, ImageExample] = {}
            for example in examples:
                key = example_key(example, labelled=labelled)
                if key not in found:
                    new[key] = example
            found.update(new)
            if new:
                yield _encode_batch(new, looked_at)


def _encode_batch(new: dict[bytes, ImageExample], looked_at: int) -> EncodeBatch:
    from abkd.data.images import ImageCollator

    inputs = ImageCollator()(list(new.values()))["batch"].teacher.inputs
    targets = torch.tensor([label_of(example) for example in new.values()])
    return EncodeBatch(
        list(map(image_sequence, new)), View(inputs=inputs, rows=torch.arange(len(new))), targets, looked_at
    )
