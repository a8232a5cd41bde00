"""Decode every image once before training, and report those that cannot be decoded."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from abkd.data.formats import BadRowError
from abkd.data.images._decode import decoded, digest, has_more_frames, quiet
from abkd.data.images._images import Images
from abkd.data.images._pixels import Array
from abkd.data.progress import progress
from abkd.errors import DataError

logger = logging.getLogger("abkd")

_NAMED = 10  # bad images that an error message lists
_AT_ONCE = 256  # images that are queued for the threads at once
_THREADS = 16

Size = tuple[int, int]
Found = tuple[Size, bytes, bool] | BadRowError


@dataclass(frozen=True, slots=True)
class Checked:
    """Checked images. ``images``: the usable ones. ``sizes``: (H, W) of each, or one for all. ``bad``: the others."""

    images: Images
    sizes: Sequence[Size]
    bad: Sequence[tuple[int, BadRowError]]


def check(images: Images, name: str) -> Checked:
    """Decode every image once. Arrays were checked when they were loaded."""
    if isinstance(images.pixels, Array):
        return Checked(images, [images.pixels.array.shape[1:3]], [])
    good, sizes, digests, bad, several = [], [], [], [], []
    with quiet():
        for index, found in enumerate(progress(_examined(images), len(images), f"checking {name}")):
            if isinstance(found, BadRowError):
                bad.append((index, found))
                continue
            good.append(index)
            sizes.append(found[0])
            digests.append(found[1])
            several += [index] * found[2]
    if several:
        first = images.where(several[0])
        logger.info("abkd: %s: %d images have several frames (%s, …); the first is used", name, len(several), first)
    kept = images.take(good)
    kept.remember(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16))
    return Checked(kept, sizes, bad)


def refuse(images: Images, bad: Sequence[tuple[int, BadRowError]], name: str) -> DataError:
    """The error for images that cannot be used: their names, the reasons and the way out."""
    named = "; ".join(f"{images.where(index)}: {error}" for index, error in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return DataError(
        f"{images.name or name}: {len(bad)} of {len(images)} images cannot be used: {named}{more}. "
        "Fix them, or set on_bad_row: drop to train without them"
    )


def reasons(bad: Sequence[tuple[int, BadRowError]]) -> Counter[str]:
    """Number of images left out, by reason."""
    return Counter(error.reason for _, error in bad)


def common_size(checked: Checked, name: str) -> Size:
    """(H, W) of all images. Raises DataError, naming two that differ, if they are not all of one size."""
    for index, size in enumerate(checked.sizes):
        if size != checked.sizes[0]:
            (h, w), (other_h, other_w) = checked.sizes[0], size
            raise DataError(
                f"{checked.images.name or name}: the images differ in size ({checked.images.where(0)} is {h} × {w}, "
                f"{checked.images.where(index)} {other_h} × {other_w}): set image_size to scale and crop all of them"
            )
    return checked.sizes[0]


def _examined(images: Images) -> Iterator[Found]:
    if not images.pixels.thread_safe:
        for index in range(len(images)):
            yield _examine(images, index)
        return
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        for start in range(0, len(images), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(images)))
            yield from threads.map(lambda index: _examine(images, index), part)


def _examine(images: Images, index: int) -> Found:
    try:
        content = images.content(index)
        return decoded(content).shape[:2], digest(content), has_more_frames(content)
    except BadRowError as error:
        return error
