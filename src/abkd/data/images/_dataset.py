"""Datasets of checked images: pixels of one size, and the classes with their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from abkd.data.images._check import check, common_size, reasons, refuse
from abkd.data.images._decode import Uint8
from abkd.data.images._images import Images
from abkd.data.images._load import load_images
from abkd.data.images._resize import fit, stretch
from abkd.data.images.augmentation import Augmentation, Mixup
from abkd.data.prepared import ExampleDataset
from abkd.errors import ConfigError, DataError

_LARGEST = 16_384


class ImageExample(TypedDict):
    """One image of a batch.

    pixels: uint8 [3, H, W]; float32 from 0 to 255 if two images were mixed.
    labels: pairs (class, weight), whose weights sum to 1; empty without labels.
    is_padding: whether the example is padding, not an image of the dataset.
    """

    pixels: Tensor
    labels: list[tuple[int, float]]
    is_padding: bool


class ImageDataset(ExampleDataset):
    """Checked images of one size; a torch map-style dataset.

    ``dataset[index]`` is the image without augmentation. ``dataset[epoch, index]`` is augmented, and depends only on
    (seed, epoch, index), not on the process or the order of access.

    ``images``, ``labelled``, ``class_names`` (or None), ``size`` (H, W), ``augmentation``, ``seed``; ``num_classes``:
    None if there are neither labels nor names.
    """

    def __init__(
        self,
        images: Images,
        *,
        size: tuple[int, int],
        augmentation: Sequence[Augmentation] = (),
        seed: int = 0,
        name: str = "train",
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        self.images, self.size, self.seed, self.name = images, size, seed, name
        self.augmentation, self.dropped = _checked(augmentation), dict(dropped or {})
        self.indexed_by_epoch = bool(self.augmentation)
        self.class_names, self.labelled = images.class_names, images.labels is not None
        self.num_classes = images.num_classes
        self._mixup = next((step for step in self.augmentation if isinstance(step, Mixup)), None)
        if seed < 0:
            raise ConfigError(f"the seed of augmented images must be at least 0, got {seed}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> ImageExample:
        if not isinstance(key, tuple):
            return self._example(self._plain(key), self._classes(key))
        epoch, index = key
        if not self.augmentation:
            return self._example(self._plain(index), self._classes(index))
        return self._augmented(index, np.random.default_rng([self.seed, epoch, index]))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all images and labels in order, their size and their augmentation."""
        chance = (self.augmentation, self.seed) if self.augmentation else ()
        return hashlib.sha256(f"{self.images.fingerprint} {self.size} {chance}".encode()).hexdigest()[:16]

    def padding_example(self) -> ImageExample:
        """The first image, marked as padding: it is left out of a batch, or has weight 0 in it."""
        return {**self[0], "is_padding": True}

    def _plain(self, index: int) -> Uint8:
        return fit(self.images.image(index), self.size)

    def _augmented(self, index: int, rng: np.random.Generator) -> ImageExample:
        pixels, classes = self._changed(index, rng), self._classes(index)
        drawn = self._mixup.draw(rng, len(self)) if self._mixup else None
        if drawn is None:
            return self._example(pixels, classes)
        other, weight = drawn
        share = np.float32(weight)
        # both in colour first: a grey image may be mixed with a coloured one
        mixed = share * _three_channels(pixels) + (1 - share) * _three_channels(self._changed(other, rng))
        return self._example(mixed, _joined(classes, self._classes(other), weight))

    def _changed(self, index: int, rng: np.random.Generator) -> Uint8:
        image = self.images.image(index)
        first = [step for step in self.augmentation if step.before_resizing]
        for step in first:
            image = step(image, rng)
        image = stretch(image, self.size) if first else fit(image, self.size)
        for step in self.augmentation:
            if not step.before_resizing:
                image = step(image, rng)
        return image

    def _classes(self, index: int) -> list[tuple[int, float]]:
        return [] if self.images.labels is None else [(int(self.images.labels[index]), 1.0)]

    def _example(self, image: np.ndarray, classes: list[tuple[int, float]]) -> ImageExample:
        pixels = np.array(_three_channels(image).transpose(2, 0, 1), order="C")
        return {"pixels": torch.from_numpy(pixels), "labels": classes, "is_padding": False}


def prepare_images(
    images: object,
    *,
    size: int | tuple[int, int] | None = None,
    augmentation: Sequence[Augmentation] = (),
    seed: int = 0,
    on_bad_row: Literal["error", "drop"] = "error",
    name: str = "train",
) -> ImageDataset:
    """Check images (anything ``load_images`` accepts; an ImageDataset is returned unchanged): each is decoded once.

    Args:
        size: side, or (H, W), in pixels, to which images are scaled (shorter side first, bicubic, antialiased) and
            center-cropped; None keeps the size that all images have.
        augmentation: for ``dataset[epoch, index]``, in this order.
        seed: for the augmentation.
        on_bad_row: "drop" leaves out, and counts by reason, the images that "error" rejects.
        name: for messages.

    Raises:
        DataError: no images, images of different sizes without ``size``, and, unless ``on_bad_row="drop"``, images
            that cannot be used, with their names and reasons.
    """
    if isinstance(images, ImageDataset):
        return images
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(f"on_bad_row must be 'error' or 'drop', got {on_bad_row!r}")
    wanted = None if size is None else _size(size)
    steps = _checked(augmentation)
    loaded = load_images(images)
    checked = check(loaded, name)
    if checked.bad and on_bad_row == "error":
        raise refuse(loaded, checked.bad, name)
    dropped = reasons(checked.bad)
    if not len(checked.images):
        listed = ", ".join(f"{count} × {reason}" for reason, count in dropped.most_common())
        raise DataError(f"{loaded.name or name}: all {len(loaded)} images were dropped ({listed})")
    found = common_size(checked, name) if wanted is None else wanted
    return ImageDataset(checked.images, size=found, augmentation=steps, seed=seed, name=name, dropped=dropped)


def _checked(augmentation: Augmentation | Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    steps = (augmentation,) if isinstance(augmentation, Augmentation) else tuple(augmentation)
    if wrong := [step for step in steps if not isinstance(step, Augmentation)]:
        raise ConfigError(f"augmentation must be a list of steps such as RandomCrop(padding=4), got {wrong[0]!r} in it")
    if sum(isinstance(step, Mixup) for step in steps) > 1:
        raise ConfigError("augmentation takes at most one Mixup, got several")
    return steps


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= _LARGEST for side in pair):
        raise ConfigError(f"image_size must be a side or (height, width), from 1 to {_LARGEST} pixels, got {size!r}")
    return pair


def _three_channels(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _joined(mine: list[tuple[int, float]], theirs: list[tuple[int, float]], weight: float) -> list[tuple[int, float]]:
    """The classes of a mixed image; one where both are of the same class."""
    if not mine or mine[0][0] == theirs[0][0]:
        return mine
    return [(mine[0][0], weight), (theirs[0][0], 1.0 - weight)]
