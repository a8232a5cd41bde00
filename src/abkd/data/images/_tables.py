"""Images from the datasets library, from torch datasets and from plain sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset

from abkd.data.bad_rows import cannot_be_read
from abkd.data.images._images import Images
from abkd.data.images._pixels import Indexed, Items
from abkd.data.labels import tidy_labels
from abkd.data.progress import progress
from abkd.errors import AbkdError, DataError

if TYPE_CHECKING:
    import datasets

_IMAGES = ("image", "img", "images", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "target")


def of_table(table: datasets.Dataset, name: str) -> Images:
    """Images of a ``datasets.Dataset``: the column ``image`` (or ``img``, or the only column of images).

    They are read as stored, without transforms and formats set on the table.
    """
    import datasets

    features = table.features
    of_images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    known = [column for column in _IMAGES if column in features]
    if not known and len(of_images) != 1:
        wanted = f"{_IMAGES[0]} (or {', '.join(_IMAGES[1:])})"
        raise DataError(f"{name}: expected a column named {wanted}, got {_named(features)}")
    column = known[0] if known else of_images[0]
    table = table.with_format(None)
    label = next((name for name in _LABELS if name in features), None)
    labels = None if label is None else table.select_columns(label).with_format("arrow")[:][label].to_pylist()
    names = getattr(features[label], "names", None) if label else None
    found, names = tidy_labels(labels, names, len(table), name)
    pixels = table.select_columns(column)
    if column in of_images:
        pixels = pixels.cast_column(column, datasets.Image(decode=False))
    return Images(Items(pixels, _Column(column)), labels=found, class_names=names, name=name)


def of_items(items: Iterable[object], name: str) -> Images:
    """Images of a sequence of dicts or of pairs (image, label), or of images alone.

    Every item is read once to get its label. Class names come from ``items.classes``, if present.
    """
    by_number = hasattr(items, "__getitem__") and hasattr(items, "__len__") and not isinstance(items, IterableDataset)
    source: Any = items if by_number else list(items)
    rows = progress(range(len(source)), len(source), f"reading the labels of {name}")
    labels = [_parts(_item(source, row, name), row, name)[1] for row in rows]
    classes = getattr(source, "classes", None)
    classes = list(classes) if isinstance(classes, list | tuple | np.ndarray) else None
    found, names = tidy_labels(labels, classes, len(source), name)
    return Images(Items(source, image_of), labels=found, class_names=names, name=name)


@dataclass(frozen=True, slots=True)
class _Column:
    name: str

    def __call__(self, row: Mapping[str, object]) -> object:
        return row[self.name]


def image_of(item: object) -> object:
    """The image of an item of a dataset."""
    return _parts(item, 0, "")[0]


def _item(source: Indexed, row: int, name: str) -> object:
    try:
        return source[row]
    except AbkdError:
        raise
    except Exception as error:  # raised by user code
        raise DataError(f"{name}, row {row + 1}: {cannot_be_read(error)}. Fix it, or remove it") from error


def _parts(item: object, row: int, name: str) -> tuple[object, object]:
    """``(image, label or None)``."""
    if isinstance(item, Mapping):
        if (key := _first(item, _IMAGES)) is None:
            raise DataError(f"{name}, row {row + 1}: expected a key {' or '.join(_IMAGES)}, got {_named(item)}")
        label = _first(item, _LABELS)
        return item[key], None if label is None else item[label]
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) != 2:
        raise DataError(f"{name}, row {row + 1}: expected a pair (image, label), got {len(item)} items")
    return item[0], item[1]


def _first(there: Mapping[str, object], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in there), None)


def _named(columns: Iterable[object]) -> str:
    return ", ".join(map(str, columns)) or "nothing"
