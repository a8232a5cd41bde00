"""A part of the images held out, chosen by what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from abkd.data.images._images import Images
from abkd.errors import DataError


def split_images(images: Images, fraction: float, seed: int = 0) -> tuple[Images, Images]:
    """``(train, held out)``, both in the order given; ``fraction`` in (0, 1) of the images is held out, at least one.

    Of each class the same share, as near as whole images allow; what rounding leaves goes first to classes of which
    nothing else would be held out, and no class is held out entirely. Images of the same content stay together. Which
    ones are held out depends on the hash of the content and on ``seed`` alone, not on the order of the images.
    Raises DataError where there are not two different images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    groups = _same(images)
    if len(groups) < 2:
        raise DataError(
            f"{images.name or 'the data set'} shows one distinct image {len(images)} times, so nothing can be held out "
            "without leaking: give separate images for evaluation"
        )
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels
    by_class: dict[int, list[list[int]]] = {}
    for content in sorted(groups, key=lambda content: hashlib.sha256(f"{seed}\n".encode() + content).digest()):
        group = groups[content]
        by_class.setdefault(int(labels[group].min()), []).append(group)  # one image may come with several labels
    shares = _shares(labels, fraction)
    held = [group for label, wanted in shares.items() for group in _chosen(by_class.get(label, []), wanted)]
    if not held:
        held = [min((groups[content] for content in sorted(groups)), key=len)]
    out = np.zeros(len(images), dtype=bool)
    out[[index for group in held for index in group]] = True
    return images.take(np.flatnonzero(~out)), images.take(np.flatnonzero(out))


def _same(images: Images) -> Mapping[bytes, list[int]]:
    """Images with the same content."""
    groups: dict[bytes, list[int]] = {}
    for index, content in enumerate(images.digests):
        groups.setdefault(content.tobytes(), []).append(index)
    return groups


def _shares(labels: NDArray[np.int64], fraction: float) -> dict[int, int]:
    """How many images of each class are held out: round(fraction * N) in all, by largest remainders."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = fraction * counts
    shares = np.minimum(np.floor(exact).astype(int), counts - 1)
    left = max(1, round(fraction * len(labels))) - int(shares.sum())
    order = sorted(range(len(classes)), key=lambda c: (shares[c] > 0, shares[c] - exact[c], c))
    for c in [c for c in order if shares[c] < counts[c] - 1][:left]:
        shares[c] += 1
    return dict(zip(classes.tolist(), shares.tolist(), strict=True))


def _chosen(groups: Sequence[list[int]], wanted: int) -> list[list[int]]:
    """Groups in their order, as long as they fit into ``wanted`` images."""
    held: list[list[int]] = []
    for group in groups:
        if len(group) <= wanted:
            held.append(group)
            wanted -= len(group)
    return held
