"""Convert labels of any form to classes counted from 0; for all rows or for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from abkd.errors import DataError, shown

MOST_CLASSES = 1_000_000
"""Maximum number of classes of data or a file; a larger head is a mistake, and would exhaust the memory."""

Labels = tuple[NDArray[np.int64] | None, tuple[str, ...] | None]


def tidy_labels(
    labels: Iterable[object] | None, class_names: Sequence[object] | None, count: int, name: str, *, unit: str = "image"
) -> Labels:
    """``(labels int64 [N] or None, class names or None)`` from labels that are integers or names.

    None, NaN and -1 mean that there is no label; if all labels are missing, the data is unlabelled. Classes that are
    given by name only are sorted. A class name is a string, an integer, bytes, or several strings (synonyms), which are
    joined by commas. ``count``: the number of rows; ``unit``: the word for one of them in messages.
    Raises DataError: labels for some rows only, not one label per row, negative labels, or labels beyond the class
    names; a class name of another type.
    """
    names = None if class_names is None else tuple(_class_name(each, name) for each in class_names)
    if labels is None:
        return None, names
    values = _flat(labels, name, unit)
    if len(values) != count:
        raise DataError(f"{name}: expected one label for each of {count} {unit}s, got {len(values)} labels")
    missing = sum(map(_is_missing, values))
    if missing == len(values):
        return None, names
    if missing:
        raise DataError(
            f"{name}: {missing} of {count} {unit}s have no label. Label all or none: remove those {unit}s, or pass no "
            "labels at all, since distillation does not need them"
        )
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) == len(values):
        return _by_name(texts, names, name)
    found = _integers(values, name)
    if min(found) < 0 or (names is not None and max(found) >= len(names)):
        upto = "" if names is None else f" to {len(names) - 1} (for {len(names)} class names)"
        raise DataError(f"{name}: labels must count classes from 0{upto}, got {min(found)} to {max(found)}")
    if max(found) >= MOST_CLASSES:
        raise DataError(
            f"{name}: labels must be below {MOST_CLASSES}, got {max(found)}: number the classes from 0 without gaps, "
            "or use names as labels"
        )
    return np.array(found, dtype=np.int64), names


def empty_classes(labels: NDArray[np.int64] | None, class_names: Sequence[str] | None) -> list[str]:
    """The classes without images; their numbers if they have no names."""
    if labels is None or not len(labels):
        return []
    count = int(labels.max()) + 1 if class_names is None else len(class_names)
    without = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
    return [str(number) if class_names is None else class_names[number] for number in without.tolist()]


def _class_name(value: object, name: str) -> str:
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, tuple | list) and value and all(isinstance(each, str | bytes) for each in value):
        return ", ".join(_class_name(each, name) for each in value)  # as ImageNet models write them
    raise DataError(f"{name}: class names must be strings, or tuples of strings, got {shown(value)}")


def _flat(labels: Iterable[object], name: str, unit: str) -> list[object]:
    if isinstance(labels, np.ndarray):
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise DataError(
                f"{name}: expected one label per {unit}, got an array of shape {list(labels.shape)}: "
                "for one-hot labels, use y.argmax(1)"
            )
        return labels.tolist()
    return [_scalar(value) for value in labels]


def _scalar(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray | Tensor) and np.prod(value.shape) == 1:
        return value.item()
    return value


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and (value == -1 or value != value))


def repeated(names: Sequence[str]) -> list[str]:
    """The names that several classes have."""
    return [name for name, count in Counter(names).items() if count > 1]


def _by_name(values: Sequence[str], names: tuple[str, ...] | None, name: str) -> Labels:
    known = tuple(sorted(set(values))) if names is None else names
    position = {label: number for number, label in enumerate(known)}
    if unknown := sorted(set(values) - position.keys()):
        raise DataError(f"{name}: {unknown[0]!r} is not among the {len(known)} class names: {_some(known)}")
    if twice := sorted(set(values).intersection(repeated(known))):
        raise DataError(
            f"{name}: several classes are named {twice[0]!r}, so the label is ambiguous: use integers as labels, or "
            "give each class a unique name"
        )
    return np.array([position[value] for value in values], dtype=np.int64), known


def _integers(values: Sequence[object], name: str) -> list[int]:
    found = []
    for number, value in enumerate(values, 1):
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            raise DataError(f"{name}, row {number}: the label must be an integer or a name, got {value!r}")
        found.append(int(value))
    return found


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")
