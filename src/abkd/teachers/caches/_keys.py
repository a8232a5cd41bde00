"""Keys of stored rows: a fingerprint of the tokens that the teacher reads, and a position in them.

Nothing else is part of a key, neither index nor step: with shuffling, accumulation, another batch size, padding and
packing the same rows are found, and a row whose context differs by one token is another row. An image is one row; its
key is a fingerprint of the pixels that the teacher gets, before its preprocessing, and of the label, if the label's
probability is stored.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abkd.data import Example, View
from abkd.data.images import label_of

KEY_BYTES = 16
Run = tuple[int, int]
"""First position and number of consecutive rows."""

_IMAGE: tuple[Run, ...] = ((0, 1),)


class CachedSequence(NamedTuple):
    """One sequence as the teacher reads it, and the positions in it whose output predicts a trained token.

    For an image, ``ids`` is empty.
    """

    key: bytes
    ids: array[int]
    runs: tuple[Run, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(count for _, count in self.runs)


class EncodeBatch(NamedTuple):
    """A batch that the teacher encodes for the cache.

    sequences: the sequences of its rows, in order. view, targets: as in a batch; a target below 0 is unknown.
    done: how much of the work is done after this batch.
    """

    sequences: list[CachedSequence]
    view: View
    targets: Tensor
    done: int


def key_of(ids: bytes) -> bytes:
    """The key of the sequence whose token ids, as int32, are these bytes."""
    return hashlib.blake2b(ids, digest_size=KEY_BYTES).digest()


def sequences_of(example: Any, *, labelled: bool = False) -> Iterator[CachedSequence]:
    """The teacher's side of an example, one sequence per packed segment; segments without rows are left out.

    ``labelled``: whether the key of an image includes its label.
    """
    if "pixels" in example:
        yield image_sequence(example_key(example, labelled=labelled))
        return
    ids = array("i", example.get("teacher_input_ids", example["input_ids"]))
    trained = bytes(example.get("teacher_trained", example["trained"]))
    start = 0
    for length in _lengths(example):
        end = start + length
        runs = tuple(run.span() for run in re.finditer(rb"\x01+", trained[start + 1 : end]))
        if runs:
            part = ids[start:end]
            yield CachedSequence(key_of(part.tobytes()), part, tuple((first, stop - first) for first, stop in runs))
        start = end


def distinct(examples: Iterable[Example]) -> dict[bytes, CachedSequence]:
    """The sequences of all examples by key; sequences with the same key are merged, with the rows of all of them."""
    found: dict[bytes, CachedSequence] = {}
    for sequence in itertools.chain.from_iterable(map(sequences_of, examples)):
        other = found.get(sequence.key)
        runs = sequence.runs if other is None else union(other.runs, sequence.runs)
        found[sequence.key] = sequence._replace(runs=runs)
    return found


def union(one: Iterable[Run], other: Iterable[Run]) -> tuple[Run, ...]:
    """The runs of the positions that are in either of the two."""
    merged: list[Run] = []
    for first, count in sorted([*one, *other]):
        if merged and first <= sum(merged[-1]):
            start, _ = merged[-1]
            merged[-1] = (start, max(sum(merged[-1]), first + count) - start)
        else:
            merged.append((first, count))
    return tuple(merged)


def sequence_keys(view: View) -> Iterator[tuple[bytes, Tensor]]:
    """For each sequence of ``view``, in the order of its rows: its key, and the positions [n] of its rows in it.

    A sequence is where ``position_ids`` count up from 0, so padding and packing need no special handling.
    """
    if view.rows.numel() == 0:
        return
    ids = view.inputs["input_ids"].flatten().to("cpu", torch.int32)
    positions = view.inputs["position_ids"].flatten().cpu()
    rows = view.rows.cpu()
    borders = torch.cat([(positions == 0).nonzero().squeeze(1), torch.tensor([positions.numel()])])
    place = positions[rows]
    starts, counts = torch.unique_consecutive(rows - place, return_counts=True)
    ends = borders[torch.searchsorted(borders, starts, right=True)]
    for start, end, chosen in zip(starts.tolist(), ends.tolist(), place.split(counts.tolist()), strict=True):
        yield key_of(ids[start:end].numpy().tobytes()), chosen


def image_sequence(key: bytes) -> CachedSequence:
    """The one row of an image."""
    return CachedSequence(key, array("i"), _IMAGE)


def image_keys(pixels: Tensor, labels: Tensor | None = None) -> list[bytes]:
    """The key of each image of ``[B, 3, H, W]``, uint8, or float32 from 0 to 255.

    An image of integers has the same key in both dtypes: in a batch with mixed images it is float32.

    Args:
        labels: [B], if what is stored depends on an image's label (below 0: unknown).
    """
    plain = pixels.cpu().contiguous()
    size = f"{tuple(plain.shape[1:])} ".encode()
    known = [-1] * len(plain) if labels is None else labels.tolist()
    classes = [f"{label} ".encode() if label >= 0 else b"" for label in known]
    if not plain.is_floating_point():
        images = iter(plain.numpy())
    else:
        whole = plain.clamp(0, 255).to(torch.uint8)
        same = (whole == plain).flatten(1).all(1).tolist()
        images = (short if fits else long for fits, short, long in zip(same, whole.numpy(), plain.numpy(), strict=True))
    return [key_of(label + size + image.tobytes()) for label, image in zip(classes, images, strict=True)]


def example_key(example: Any, *, labelled: bool) -> bytes:
    """The key of an image example."""
    return image_keys(example["pixels"][None], torch.tensor([label_of(example)]) if labelled else None)[0]


def _lengths(example: Example) -> list[int]:
    """Number of tokens of each segment on the teacher's side; packed rows are the same on both sides."""
    if "segments" in example:
        return [sum(1 for _ in group) for _, group in itertools.groupby(example["segments"])]
    return [len(example.get("teacher_input_ids", example["input_ids"]))]
