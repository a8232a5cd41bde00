"""Random augmentation of images, which depends only on the run's seed, the epoch and the index of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from abkd.data.images._decode import Uint8
from abkd.errors import ConfigError

__all__ = ["Augmentation", "HorizontalFlip", "Mixup", "RandomCrop", "RandomResizedCrop"]


class Augmentation:
    """Function from an image uint8 [H, W, C] and a random generator to another image; immutable and stateless.

    ``before_resizing``: whether it reads the stored image, not the one resized to the size of the dataset. The dataset
    then scales the output to that size.
    """

    before_resizing: ClassVar[bool] = False

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        """The augmented image, uint8 [H', W', C]."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomCrop(Augmentation):
    """A crop of the image's own size, after ``padding`` black pixels are added on each side (He et al., 2016).

    Raises:
        ConfigError: ``padding`` is not an integer from 1 to 16384.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if type(self.padding) is not int or not 1 <= self.padding <= 16_384:
            raise ConfigError(f"RandomCrop: padding must be an integer from 1 to 16384, got {self.padding!r}")

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        height, width, channels = image.shape
        around = 2 * self.padding
        top, left = rng.integers(0, around + 1, size=2)
        padded = np.zeros((height + around, width + around, channels), dtype=np.uint8)
        padded[self.padding : self.padding + height, self.padding : self.padding + width] = image
        return padded[top : top + height, left : left + width]


@dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """Flip left and right with this ``probability``. Not for images with writing, such as digits.

    Raises:
        ConfigError: ``probability`` is not in (0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not (_is_number(self.probability) and 0 < self.probability <= 1):
            raise ConfigError(f"HorizontalFlip: probability must be in (0, 1], got {self.probability!r}")

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        return image[:, ::-1] if rng.random() < self.probability else image


@dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """A crop of the stored image with random area and aspect ratio, which is then resized (Szegedy et al., 2015).

    ``scale``: minimum and maximum fraction of the image's area. ``ratio``: minimum and maximum width / height, drawn
    uniformly on a logarithmic scale. If ten draws give no crop within the image, the largest center crop with an
    allowed ratio is used.

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

    Teacher and student see the same mixture; its labels are those of both images, with weights λ and 1-λ. ``share``:
    fraction of the images that are mixed; mixing only some is better for distillation (arXiv 2211.03946). The other
    image and λ are drawn by the dataset, so a call with one image returns it unchanged.

    Raises:
        ConfigError: ``alpha`` is not above 0, or ``share`` is not in (0, 1].
    """

    alpha: float = 0.2
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.alpha) and 0 < self.alpha <= 1e6):  # far beyond, numpy's Beta overflows
            raise ConfigError(f"Mixup: alpha must be above 0 and at most 1e6, got {self.alpha!r}")
        if not (_is_number(self.share) and 0 < self.share <= 1):
            raise ConfigError(f"Mixup: share must be in (0, 1], got {self.share!r}")

    def __call__(self, image: Uint8, rng: np.random.Generator) -> Uint8:
        return image

    def draw(self, rng: np.random.Generator, count: int) -> tuple[int, float] | None:
        """``(index of the other image of count, λ)``, or None for an image that is not mixed."""
        chance, other, weight = rng.random(), int(rng.integers(count)), float(rng.beta(self.alpha, self.alpha))
        return (other, weight) if chance < self.share else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(name: str, pair: Any, most: float) -> tuple[float, float]:
    fine = isinstance(pair, tuple | list) and len(pair) == 2 and all(map(_is_number, pair))
    if not (fine and 0 < pair[0] <= pair[1] <= most and pair[1] < math.inf):
        upto = "" if most == math.inf else f", at most {most:g}"
        raise ConfigError(f"RandomResizedCrop: {name} must be (min, max), above 0{upto}, got {pair!r}")
    return float(pair[0]), float(pair[1])
