"""Hold out a part of the images for evaluation, stratified by class and chosen by a hash of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from abkd.data.images._images import Images
from abkd.errors import DataError


def split_images(images: Images, fraction: float, seed: int = 0) -> tuple[Images, Images]:
    """``(train, held out)``, both in the order given; ``fraction`` in (0, 1) of the images is held out, at least one.

    Every class has the same share, up to rounding; the remainder goes first to classes that would otherwise have no
    held-out image, and no class is held out entirely. Images with the same content stay together. Which ones are held
    out depends only on the hash of the content and on ``seed``, not on the order of the images.
    Raises DataError if there are fewer than two distinct images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must be between 0 and 1, got {fraction}")
    groups = _same(images)
    if len(groups) < 2:
        raise DataError(
            f"{images.name or 'the dataset'} has only one distinct image, {len(images)} times, so nothing can be held "
            "out without leaking: provide separate images for evaluation"
        )
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels
    by_class: dict[int, list[list[int]]] = {}
    for content in sorted(groups, key=lambda content: hashlib.sha256(f"{seed}\n".encode() + content).digest()):
        group = groups[content]
        by_class.setdefault(int(labels[group].min()), []).append(group)  # the same image may have several labels
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
    """Number of held-out images of each class: round(fraction * N) in total, by largest remainders."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = fraction * counts
    shares = np.minimum(np.floor(exact).astype(int), counts - 1)
    left = max(1, round(fraction * len(labels))) - int(shares.sum())
    order = sorted(range(len(classes)), key=lambda c: (shares[c] > 0, shares[c] - exact[c], c))
    for c in [c for c in order if shares[c] < counts[c] - 1][:left]:
        shares[c] += 1
    return dict(zip(classes.tolist(), shares.tolist(), strict=True))


def _chosen(groups: Sequence[list[int]], wanted: int) -> list[list[int]]:
    """The groups in turn that still fit into ``wanted`` images."""
    held: list[list[int]] = []
    for group in groups:
        if len(group) <= wanted:
            held.append(group)
            wanted -= len(group)
    return held
