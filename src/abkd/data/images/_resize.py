"""Resize images to one size: scale with antialiasing, then center-crop."""

from __future__ import annotations

import numpy as np

from abkd.data.images._decode import Uint8


def fit(image: Uint8, size: tuple[int, int]) -> Uint8:
    """Scale an image [H', W', C] to cover ``size`` (H, W) and center-crop it; unchanged if it has that size."""
    height, width = size
    if image.shape[:2] == size:
        return image
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    scaled = stretch(image, covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return scaled[top : top + height, left : left + width]


def stretch(image: Uint8, size: tuple[int, int]) -> Uint8:
    """Scale an image [H', W', C] to exactly ``size`` (H, W), bicubic; unchanged if it has that size."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    scaled = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return scaled.reshape(*size, image.shape[2])
