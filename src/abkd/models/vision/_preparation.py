"""From the pixels that all models share to what one model was trained to see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError

Filter = Literal["nearest", "bilinear", "bicubic"]

_LARGEST = 16_384
_GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue are (ITU-R 601)

FILTERS: dict[Filter, tuple[str, bool]] = {
    "nearest": ("nearest-exact", False),
    "bilinear": ("bilinear", True),
    "bicubic": ("bicubic", True),
}
"""What ``torch.nn.functional.interpolate`` calls them, and whether it has to look at more pixels where it shrinks."""


@dataclass(frozen=True)
class Preparation:
    """What a model wants its pixels to be: ``(pixels / 255 - mean) / std``, of side ``size`` (None: as they come).

    Attributes:
        mean, std: per channel, of pixels in [0, 1].
        size: the side of the square that the model sees.
        resized: the shorter side of the image before that square is cut out of its middle; None: the whole image is
            made a square.
        filter: how it is resized; an image that has the wanted side already is left as it is.
        grey: whether the model reads one channel, a weighted mean of the three.

    Raises:
        ConfigError: not three channels, a std that is not positive, an unknown filter, or a square larger than the
            image it is cut from.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: int | None = None
    resized: int | None = None
    filter: Filter = "bicubic"
    grey: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"pixels have three channels, with a mean and a positive std each, but it is {self!r}")
        if not all(map(_is_side, (self.size, self.resized))):
            raise ConfigError(f"size and resized are sides in pixels from 1 to {_LARGEST}, but it is {self!r}")
        if self.filter not in FILTERS:
            raise ConfigError(f"images are resized with one of {', '.join(FILTERS)}, but filter={self.filter!r}")
        if self.resized is not None and (self.size is None or self.resized < self.size):
            raise ConfigError(f"the square of side {self.size} is cut out of an image of side {self.resized}")

    def __call__(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` from 0 to 255, integers or not, as ``[B, 3, S, S]`` float32, or [B, 1, S, S] in grey."""
        image = pixels.float() / 255.0
        if self.size is not None:
            image = _middle(self._resize(image), self.size)
        mean, std = _constants(self.mean, self.std, image.device)
        image = (image - mean) / std
        return _in_grey(image) if self.grey else image

    def _resize(self, image: Tensor) -> Tensor:
        sides = self._sides(*image.shape[-2:])
        if sides == tuple(image.shape[-2:]):
            return image
        mode, antialias = FILTERS[self.filter]
        return nn.functional.interpolate(image, sides, mode=mode, antialias=antialias).clamp(0.0, 1.0)

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        if self.resized is None:
            return self.size, self.size  # type: ignore[return-value]  # asked for only where there is a size
        shorter = min(height, width)
        return int(self.resized * height / shorter), int(self.resized * width / shorter)


def _is_side(side: int | None) -> bool:
    return side is None or (isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST)


def _middle(image: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def _in_grey(images: Tensor) -> Tensor:
    """``[B, 3, H, W]`` to ``[B, 1, H, W]``."""
    weights = torch.tensor(_GREY, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """``[3, 1, 1]`` each; kept, because a copy to a GPU at every step would wait for it."""
    with torch.inference_mode(False):
        low, wide = (torch.tensor(each, device=device)[:, None, None] for each in (mean, std))
        return low, wide
