"""The pairs of classifiers whose training step is measured, and the images they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from abkd.models import cifar
from abkd.models.vision import Classifier, Preparation

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@dataclass
class Pair:
    """Two classifiers, and images ``uint8 [N, 3, H, W]`` with labels ``[N]``, in the order of training.

    A model that a contestant does not need is None, so that its weights are not in the measured memory.
    """

    student: Any
    teacher: Any
    pixels: Tensor
    labels: Tensor
    batch_size: int
    state_per_weight: ClassVar[int] = 2  # the gradient and the momentum

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised pixels and labels of each step, from memory."""
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
        for start in range(0, len(self.labels), self.batch_size):
            now = slice(start, start + self.batch_size)
            yield (self.pixels[now].float() / 255 - mean) / std, self.labels[now]

    def counts(self, steps: int) -> list[dict[str, int]]:
        """The images of each step."""
        return [{"images": self.batch_size}] * steps

    def classifier(self, model: nn.Module) -> Classifier:
        """A model of the pair as abkd's classifier, with the same preprocessing as :meth:`batches`."""
        return Classifier(model, Preparation(MEAN, STD))


def make_pair(name: str, steps: int, *, student: bool = True, teacher: bool = True) -> Pair:
    """The pair ``name`` of :data:`PAIRS` with images for ``steps`` steps, without the models that are not needed."""
    torch.manual_seed(0)
    of_student, of_teacher, classes, side, batch_size = PAIRS[name]
    count = steps * batch_size
    pair = Pair(
        of_student() if student else None,
        of_teacher() if teacher else None,
        torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8),
        torch.randint(0, classes, (count,)),
        batch_size,
    )
    if teacher:
        _settle(pair.teacher, next(pair.batches())[0])
    return pair


@torch.no_grad()
def _settle(model: nn.Module, pixels: Tensor) -> None:
    """Set a random network's batch norm statistics from some images, so that its logits have a realistic scale."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    model.train()(pixels)
    for layer in layers:
        layer.momentum = 0.1


def _convolutions(*widths: int) -> nn.Module:
    """Two 3×3 convolutions with a max pooling between them."""
    first, second = widths
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 10)),
    )


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int, int, int]] = {
    "resnet": (lambda: cifar.create("resnet20"), lambda: cifar.create("resnet56"), 100, 32, 64),
    "digits": (lambda: _convolutions(8, 16), lambda: _convolutions(64, 128), 10, 8, 64),
    "tiny": (lambda: _convolutions(2, 4), lambda: _convolutions(4, 8), 10, 8, 4),
}
"""Builders of student and teacher, number of classes, side of the images, images per step."""
