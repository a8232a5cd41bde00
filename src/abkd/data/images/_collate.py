"""Collate image examples into a batch of rows: one row per image, or one per class of a mixed image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd.data.collate import Batch, View
from abkd.data.images._dataset import ImageExample
from abkd.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageCollator:
    """Examples -> ``{"batch": Batch}`` (a dict, because training loops expect one), of B images and N rows.

    The view's inputs are ``pixels`` [B, 3, H, W], uint8, or float32 from 0 to 255 if an image was mixed; its rows are
    the image index of each row. Both models read the same view and convert the pixels to the form that they need. A
    mixed image has a row for each of its classes, with its weight; without labels, targets are None.

    Padding examples are left out; in a batch of nothing else, one is kept with weight 0, so that the model has an
    input. Raises DataError if only some of the examples have labels.
    """

    def __call__(self, examples: Sequence[ImageExample]) -> dict[str, Batch]:
        """The batch of these examples."""
        chosen = [example for example in examples if not example["is_padding"]] or list(examples[:1])
        if len({bool(example["labels"]) for example in chosen}) > 1:
            raise DataError("a batch has images with and without labels: label all or none")
        rows = torch.tensor([image for image, example in enumerate(chosen) for _ in example["labels"] or [None]])
        pixels = _stacked([example["pixels"] for example in chosen])
        view = View(inputs={"pixels": pixels}, rows=rows, labels=torch.tensor(list(map(label_of, chosen))))
        targets, weight = _targets(chosen)
        batch = Batch(
            student=view,
            teacher=view,
            targets=targets,
            weight=weight,
            origin=torch.zeros_like(rows),
            sequence=rows,
        )
        return {"batch": batch}


def label_of(example: ImageExample) -> int:
    """The class of an image; -1 if it is unknown, or if two images are mixed."""
    return example["labels"][0][0] if len(example["labels"]) == 1 else -1


def _stacked(pixels: Sequence[Tensor]) -> Tensor:
    """[B, 3, H, W]; float32 if any image is."""
    mixed = any(image.is_floating_point() for image in pixels)
    return torch.stack([image.float() for image in pixels] if mixed else list(pixels))


def _targets(examples: Sequence[ImageExample]) -> tuple[Tensor | None, Tensor]:
    """Class, or None, and weight of each row."""
    classes = [pair for example in examples for pair in example["labels"]]
    targets = torch.tensor([target for target, _ in classes]) if classes else None
    if examples[0]["is_padding"]:
        return None if targets is None else torch.zeros_like(targets), torch.zeros(len(examples))
    return targets, torch.tensor([share for _, share in classes]) if classes else torch.ones(len(examples))
