"""Labels as they come, to classes counted from 0; for all images or for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from abkd.errors import DataError, shown

MOST_CLASSES = 1_000_000
"""Most classes that data or a file may claim; a larger head is a mistake, and would take all the memory."""

Labels = tuple[NDArray[np.int64] | None, tuple[str, ...] | None]


def tidy_labels(labels: Any, class_names: Sequence[Any] | None, count: int, name: str) -> Labels:
    """``(labels int64 [N] or None, class names or None)`` of labels that are whole numbers or names.

    None, NaN and -1 say that there is no label; where all do, the images are unlabelled. Where classes come by name
    and in no given order, they are sorted. A class name is a text or a number, bytes of a text, or several texts that
    mean the same, which are joined by commas.
    Raises DataError: labels in part, another number of them than images, negative ones, or beyond the class names;
    a class name of another kind.
    """
    names = None if class_names is None else tuple(_class_name(each, name) for each in class_names)
    if labels is None:
        return None, names
    values = _flat(labels, name)
    if len(values) != count:
        raise DataError(f"{name}: expected one label for each of {count} images, got {len(values)} labels")
    missing = sum(map(_is_missing, values))
    if missing == len(values):
        return None, names
    if missing:
        raise DataError(
            f"{name}: {missing} of {count} images have no label. Label all or none: leave those out, or give no "
            "labels at all, since distillation needs none"
        )
    if all(isinstance(value, str) for value in values):
        return _by_name(values, names, name)
    found = _whole(values, name)
    if min(found) < 0 or (names is not None and max(found) >= len(names)):
        upto = "" if names is None else f" to {len(names) - 1}, as there are {len(names)} class names"
        raise DataError(f"{name}: labels must count classes from 0{upto}; they go from {min(found)} to {max(found)}")
    if max(found) >= MOST_CLASSES:
        raise DataError(
            f"{name}: a label is {max(found)}, and a head of so many classes cannot be built: number the classes from "
            "0 without gaps, or give names as labels"
        )
    return np.array(found, dtype=np.int64), names


def empty_classes(labels: NDArray[np.int64] | None, class_names: Sequence[str] | None) -> list[str]:
    """The classes of which there is no image; their numbers where they have no names."""
    if labels is None or not len(labels):
        return []
    count = int(labels.max()) + 1 if class_names is None else len(class_names)
    without = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
    return [str(number) if class_names is None else class_names[number] for number in without.tolist()]


def _class_name(value: Any, name: str) -> str:
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, tuple | list) and value and all(isinstance(each, str | bytes) for each in value):
        return ", ".join(_class_name(each, name) for each in value)  # as models that know ImageNet write them
    raise DataError(f"{name}: expected class names that are texts, or tuples of texts, got {shown(value)}")


def _flat(labels: Any, name: str) -> list[Any]:
    if isinstance(labels, np.ndarray):
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise DataError(
                f"{name}: expected one label an image, got an array of shape {list(labels.shape)}: "
                "of one-hot labels take y.argmax(1)"
            )
        return labels.tolist()
    return [_scalar(value) for value in labels]


def _scalar(value: Any) -> Any:
    many = not isinstance(value, np.generic | np.ndarray | Tensor) or np.prod(value.shape) != 1
    return value if many else value.item()


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and (value == -1 or value != value))


def repeated(names: Sequence[str]) -> list[str]:
    """The names that more than one class has."""
    return [name for name, count in Counter(names).items() if count > 1]


def _by_name(values: Sequence[str], names: tuple[str, ...] | None, name: str) -> Labels:
    known = tuple(sorted(set(values))) if names is None else names
    position = {label: number for number, label in enumerate(known)}
    if unknown := sorted(set(values) - position.keys()):
        raise DataError(f"{name}: {unknown[0]!r} is not among the {len(known)} class names: {_some(known)}")
    if twice := sorted(set(values).intersection(repeated(known))):
        raise DataError(
            f"{name}: there are several classes called {twice[0]!r}, so a label that is a name does not tell which: "
            "number the labels, or give each class a name of its own"
        )
    return np.array([position[value] for value in values], dtype=np.int64), known


def _whole(values: Sequence[Any], name: str) -> list[int]:
    for number, value in enumerate(values, 1):
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            raise DataError(f"{name}, row {number}: expected a label that is a whole number or a name, got {value!r}")
    return [int(value) for value in values]


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")
