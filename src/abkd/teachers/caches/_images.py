"""The images of a run that a cache must contain, and those that are not stored yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """The images of a data set as each epoch of a run sees them; a single epoch if nothing is augmented.

    ``batch_size``: images per forward of the teacher. ``order``: epoch -> keys in order; a cache that is built in the
    order and batches of training is bit-identical to the live teacher.
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
        """At most ``most`` images from all epochs, the same ones each time."""
        chosen = range(len(self))
        return map(self._example, chosen if len(self) <= most else sorted(random.Random(0).sample(chosen, most)))

    def batches(self, share: tuple[int, int]) -> Iterator[list[Key]]:
        """Batches of this process's ``share`` of the keys; all augmentations of an image are in the same process."""
        for epoch in range(len(self) // len(self.dataset)):
            keys = self.order(epoch) if self.order is not None else self._plain(epoch)
            mine = [key for key in keys if (key if isinstance(key, int) else key[1]) % share[1] == share[0]]
            yield from (mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size))
        if self.dataset.indexed_by_epoch and share[0] == 0:
            yield [0]  # without augmentation: the padding of a process that has no images left

    def _plain(self, epoch: int) -> Iterator[Key]:
        return ((epoch, index) if self.dataset.indexed_by_epoch else index for index in range(len(self.dataset)))

    def _example(self, number: int) -> ImageExample:
        epoch, index = divmod(number, len(self.dataset))
        return self.dataset[(epoch, index) if self.dataset.indexed_by_epoch else index]


def images_in(passes: Sequence[EpochImages], share: tuple[int, int]) -> int:
    """How many images this process checks."""
    index, number = share
    checked = 0
    for each in passes:
        epochs, padding_example = len(each) // len(each.dataset), each.dataset.indexed_by_epoch and index == 0
        checked += epochs * len(range(index, len(each.dataset), number)) + padding_example
    return checked


def missing_images(
    store: Store, passes: Iterable[EpochImages], share: tuple[int, int], workers: int = 0, *, labelled: bool
) -> Iterator[EncodeBatch]:
    """Batches of images that are not stored, each once; ``done`` counts the images checked.

    Args:
        workers: worker processes that read the images.
        labelled: whether the same image with another label is another row.
    """
    found, checked = set(store.places), 0
    for each in passes:
        loader = torch.utils.data.DataLoader(
            each.dataset,
            batch_sampler=each.batches(share),
            collate_fn=list,
            num_workers=workers,
        )
        for examples in loader:
            checked += len(examples)
            new: dict[bytes, ImageExample] = {}
            for example in examples:
                key = example_key(example, labelled=labelled)
                if key not in found:
                    new[key] = example
            found.update(new)
            if new:
                yield _encode_batch(new, checked)


def _encode_batch(new: dict[bytes, ImageExample], done: int) -> EncodeBatch:
    from abkd.data.images import ImageCollator

    inputs = ImageCollator()(list(new.values()))["batch"].teacher.inputs
    targets = torch.tensor([label_of(example) for example in new.values()])
    return EncodeBatch(list(map(image_sequence, new)), View(inputs=inputs, rows=torch.arange(len(new))), targets, done)
