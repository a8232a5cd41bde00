"""Images from arrays: in a .npz file, in memory, or scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from abkd.data.formats import BadRowError
from abkd.data.images._decode import Uint8, eight_bit, over_white
from abkd.data.images._images import Images
from abkd.data.images._npz import array_names, read_arrays
from abkd.data.images._pixels import Array
from abkd.data.images._splits import HELD_OUT, spellings
from abkd.data.labels import tidy_labels
from abkd.errors import DataError

_DIGITS = "zero one two three four five six seven eight nine".split()
_IMAGES, _LABELS, _CLASSES = ("images", "x"), ("labels", "y"), ("classes", "class_names")
_UNNAMED = ("arr_0", "arr_1")  # numpy.savez's names for unnamed arrays


def read_npz(path: Path, split: str) -> Images:
    """The images of one split of a .npz file; of a file without splits, all of them."""
    if not path.is_file():
        raise DataError(f"data file {path} does not exist: check the path (relative paths start at {Path.cwd()})")
    return of_arrays(read_arrays(path, lambda key: _of_interest(key, split)), split, path.name)


def splits_of_npz(path: Path) -> tuple[str, ...]:
    """Held-out splits (validation, test) of a .npz file, according to the names of its arrays."""
    names = array_names(path)
    return tuple(split for split in HELD_OUT if names.intersection(_of_split(_IMAGES, split)))


def of_arrays(arrays: Mapping[str, object], split: str = "train", name: str = "the arrays") -> Images:
    """Images ``images`` or ``x`` [N, H, W], [N, H, W, C] or [N, C, H, W], with ``labels`` or ``y``, and ``classes``.

    If a shape is ambiguous, a tensor is taken as channels-first and any other array as channels-last. ``x_train``,
    ``images_train`` or ``train_images`` are those of a split, and take precedence.
    """
    ours = _first(arrays, _of_split(_IMAGES, split))
    bare = None if ours else _first(arrays, (*_IMAGES, _UNNAMED[0]))
    key = ours or bare
    if key is None:
        raise DataError(
            f"{name} has no images of the split {split!r}: expected an array x_{split} or images_{split} (without "
            f"splits, x or images), got {', '.join(arrays) or 'none'}"
        )
    first = isinstance(arrays[key], Tensor)
    pixels = _checked(_array(arrays[key], f"{name}, {key}"), f"{name}, {key}", channels_first=first)
    labels = _first(arrays, (*(_of_split(_LABELS, split) if ours else ()), *_LABELS, _UNNAMED[1]))
    classes = _first(arrays, _CLASSES)
    found, names = tidy_labels(
        None if labels is None else _array(arrays[labels], f"{name}, {labels}"),
        None if classes is None else _names(arrays[classes], f"{name}, {classes}"),
        len(pixels),
        name,
    )
    return Images(Array(pixels), labels=found, class_names=names, name=name)


def digits() -> Images:
    """scikit-learn's 1797 scans of handwritten digits, 8 × 8 grey, the classes named in words."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits need scikit-learn, which is not installed: pip install 'abkd[demo]'") from error
    scans, labels = map(np.asarray, load_digits(return_X_y=True))
    pixels = np.rint(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # its greys go from 0 to 16
    return Images(Array(pixels), labels=labels.astype(np.int64), class_names=_DIGITS, name="digits")


def _of_split(names: Iterable[str], split: str) -> tuple[str, ...]:
    return tuple(key for part in spellings(split) for name in names for key in (f"{name}_{part}", f"{part}_{name}"))


def _of_interest(key: str, split: str) -> bool:
    """Whether an array is used; others, such as those of other splits, are not read from the disk."""
    of_split = _of_split((*_IMAGES, *_LABELS), split)
    return key in {*of_split, *_IMAGES, *_LABELS, *_CLASSES, *_UNNAMED}


def _first(arrays: Mapping[str, object], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _array(values: object, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} must be an array of numbers ({error}): pass images of several sizes as a list"
        ) from error


def _names(classes: object, name: str) -> list[object]:
    """One name per class; a row of several names belongs to one class, unless it is the only row."""
    if isinstance(classes, list | tuple):
        return list(classes)
    array = np.atleast_1d(_array(classes, name))
    return array.reshape(-1).tolist() if 1 in array.shape else array.tolist()


def _checked(array: np.ndarray, name: str, *, channels_first: bool) -> Uint8:
    """uint8 [N, H, W, C], C of 1 or 3; ``channels_first``: how to read an ambiguous shape."""
    shape = list(array.shape)
    if array.ndim == 3:
        array, channels_first = array[..., None], False
    if array.ndim == 4 and array.shape[1] in (1, 3, 4) and (channels_first or array.shape[3] not in (1, 3, 4)):
        array = np.moveaxis(array, 1, 3)
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        raise DataError(
            f"{name}: expected images [N, H, W], [N, H, W, C] or [N, C, H, W] with 1, 3 or 4 channels, got {shape}"
        )
    if 0 in array.shape:
        raise DataError(f"{name}: expected at least one image with at least one pixel, got the shape {shape}")
    try:
        pixels = eight_bit(array)
    except BadRowError as error:
        raise DataError(f"{name}: {error}") from error
    return np.ascontiguousarray(over_white(pixels) if pixels.shape[3] == 4 else pixels)
