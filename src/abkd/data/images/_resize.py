"""Images to one size: scaled with antialiasing, and cut in the middle."""

from __future__ import annotations

import numpy as np

from abkd.data.images._decode import Uint8


def fit(image: Uint8, size: tuple[int, int]) -> Uint8:
    """The middle of an image [H', W', C] that was scaled until it covers ``size`` (H, W); of that size, it is kept."""
    height, width = size
    if image.shape[:2] == size:
        return image
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    scaled = stretch(image, covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return scaled[top : top + height, left : left + width]


def stretch(image: Uint8, size: tuple[int, int]) -> Uint8:
    """An image [H', W', C] scaled to exactly ``size`` (H, W), bicubic; of that size, it is kept."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    scaled = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return scaled.reshape(*size, image.shape[2])
