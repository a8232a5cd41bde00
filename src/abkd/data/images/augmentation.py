"""Chance in the images: what is drawn for an image is a function of the run's seed, the epoch and its index alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from abkd.data.images._decode import Uint8
from abkd.errors import ConfigError

__all__ = ["Augmentation", "HorizontalFlip", "Mixup", "RandomCrop", "RandomResizedCrop"]


class Augmentation:
    """Called with an image uint8 [H, W, C] and a generator, gives another image; a frozen value, without state.

    ``before_resizing``: whether it reads the image as it was stored, and not as it was cut to the size of the data set.
    The dataset then scales what it returns to that size.
    """

    before_resizing: ClassVar[bool] = False

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        """One image made from ``image``, uint8 [H', W', C]."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomCrop(Augmentation):
    """A part of the image's own size, after ``padding`` black pixels were added on each side (He et al., 2016).

    Raises:
        ConfigError: ``padding`` is not a whole number from 1 to 16384.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if type(self.padding) is not int or not 1 <= self.padding <= 16_384:
            raise ConfigError(f"RandomCrop needs a padding of at least 1 pixel, got {self.padding!r} (at most 16384)")

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        height, width, channels = image.shape
        around = 2 * self.padding
        top, left = rng.integers(0, around + 1, size=2)
        padded = np.zeros((height + around, width + around, channels), dtype=np.uint8)
        padded[self.padding : self.padding + height, self.padding : self.padding + width] = image
        return padded[top : top + height, left : left + width]


@dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """Left and right exchanged, with this ``probability``. Not for what is read, such as digits.

    Raises:
        ConfigError: ``probability`` is not in (0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not (_is_number(self.probability) and 0 < self.probability <= 1):
            raise ConfigError(f"HorizontalFlip needs a probability above 0, at most 1, got {self.probability!r}")

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        return image[:, ::-1] if rng.random() < self.probability else image


@dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """A part of the stored image, of random area and shape, which is then scaled (Szegedy et al., 2015).

    ``scale``: the least and the greatest share of the image's area. ``ratio``: the least and the greatest width over
    height, drawn evenly on a logarithmic scale. Where ten draws give no part that lies within the image, it is the
    largest one in the middle whose shape is allowed.

    Raises:
        ConfigError: ``scale`` is not within (0, 1], ``ratio`` is not above 0, or one is not a pair in order.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    before_resizing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _range("scale", self.scale, 1.0))
        object.__setattr__(self, "ratio", _range("ratio", self.ratio, math.inf))

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        height, width = image.shape[:2]
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                return image[top : top + h, left : left + w]
        return self._middle(image)

    def _middle(self, image: Uint8) -> Uint8:
        height, width = image.shape[:2]
        h = min(height, max(1, round(width / self.ratio[0])))
        w = min(width, max(1, round(height * self.ratio[1])))
        top, left = (height - h) // 2, (width - w) // 2
        return image[top : top + h, left : left + w]


@dataclass(frozen=True)
class Mixup(Augmentation):
    """λ · image + (1-λ) · another image of the data, λ ~ Beta(alpha, alpha) (Zhang et al., arXiv 1710.09412).

    Teacher and student see the same mixture; its labels are those of both, with weights λ and 1-λ. ``share``: how many
    of the images are mixed; a part of them is better for distillation (arXiv 2211.03946). The other image and λ are
    drawn by the dataset, so a call with one image gives it back.

    Raises:
        ConfigError: ``alpha`` is not above 0, or ``share`` is not in (0, 1].
    """

    alpha: float = 0.2
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.alpha) and 0 < self.alpha <= 1e6):  # far beyond, numpy's Beta overflows
            raise ConfigError(f"Mixup needs an alpha above 0, got {self.alpha!r} (at most 1e6)")
        if not (_is_number(self.share) and 0 < self.share <= 1):
            raise ConfigError(f"Mixup needs a share above 0, at most 1, got {self.share!r}")

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        return image

    def draw(self, rng: np.random.Generator, count: int) -> tuple[int, float] | None:
        """``(index of the other image of count, λ)``, or None for an image that is not mixed."""
        chance, other, weight = rng.random(), int(rng.integers(count)), float(rng.beta(self.alpha, self.alpha))
        return (other, weight) if chance < self.share else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(name: str, pair: Any, most: float) -> tuple[float, float]:
    fine = isinstance(pair, tuple | list) and len(pair) == 2 and all(map(_is_number, pair))
    if not (fine and 0 < pair[0] <= pair[1] <= most and pair[1] < math.inf):
        upto = "" if most == math.inf else f", at most {most:g}"
        raise ConfigError(f"RandomResizedCrop needs a {name} (least, greatest) above 0{upto}, got {pair!r}")
    return float(pair[0]), float(pair[1])
