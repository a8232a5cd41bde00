"""Load images from any supported source."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from abkd.data.images._arrays import digits, of_arrays, read_npz, splits_of_npz
from abkd.data.images._folders import has_images, named_as, read_folder, splits_of_folder
from abkd.data.images._images import Images
from abkd.data.images._pixels import printable
from abkd.data.images._splits import HELD_OUT
from abkd.data.images._tables import of_items, of_table
from abkd.data.images._walk import folders_in
from abkd.data.load import is_saved, open_table
from abkd.errors import DataError

_ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_images(source: object, *, config: str | None = None, split: str = "train") -> Images:
    """Images, and labels if there are any, from any supported source; only arrays are decoded at this point.

    Args:
        source: the path of a ``.npz`` file or of a folder of images, ``"digits"`` (scikit-learn's), a dataset on the
            hub or saved to disk, a ``datasets.Dataset``, a torch ``Dataset`` or any sequence of dicts or of pairs
            (image, label), or a dict of arrays named as in a ``.npz`` file.
        config: configuration of a hub dataset.
        split: selects a split if the source has any (folders ``train``, ``val``, ``test``; arrays ``x_train``,
            ``x_test``); a source without splits is used as a whole.

    Raises:
        DataError: a source that does not exist or is not readable, no images, pixels that are not 8-bit integers,
            labels for some images only.
    """
    if isinstance(source, Images):
        return source
    images = _open(source, config, split)
    if not len(images):
        raise DataError(f"{images.name or 'the dataset'} has no images: expected at least one")
    images.warn_empty_classes()
    return images


def held_out_splits(source: str) -> tuple[str, ...]:
    """Which of "validation" and "test" a .npz file or a folder has, next to the training split."""
    path = Path(source)
    if path.suffix.lower() == ".npz" and path.is_file():
        return splits_of_npz(path)
    return splits_of_folder(path) if source != "digits" and path.is_dir() and not is_saved(path) else ()


class HeldOutImages(NamedTuple):
    """Evaluation images found next to the training images. ``name``: their location."""

    name: str
    images: Images


def held_out_beside(source: str) -> HeldOutImages | None:
    """The validation or test images next to the training images of ``source``; None if there are none.

    They come from the source's own splits, or, for a folder named train, from the folders next to it. Validation is
    preferred to test.
    """
    path = Path(source)
    if splits := held_out_splits(source):
        images = load_images(source, split=splits[0])
        name = f"{path}, {splits[0]}" if path.suffix.lower() == ".npz" else str(path / images.name)
        return HeldOutImages(printable(name), images)
    if source == "digits" or not named_as("train", [path.absolute().name]):
        return None
    parent, folders = path.absolute().parent, []
    with suppress(DataError):  # the parent folder cannot be listed: there is nothing to find
        folders = folders_in(parent)
    found = next((name for split in HELD_OUT for name in named_as(split, folders) if has_images(parent / name)), None)
    return None if found is None else HeldOutImages(printable(str(path.parent / found)), load_images(parent / found))


def _open(source: Any, config: str | None, split: str) -> Images:
    if isinstance(source, str | Path):
        return _named(source, config, split)
    if isinstance(source, np.ndarray | Tensor):
        return of_arrays({"images": source}, split)
    table = _datasets_library()
    if table is not None and isinstance(source, table.DatasetDict):
        if split not in source:
            raise DataError(f"the dataset has no split {split!r}: use one of {', '.join(map(str, source))}")
        source = source[split]
    if table is not None and isinstance(source, table.Dataset):
        return of_table(source, "the dataset")
    if isinstance(source, Mapping):
        return of_arrays(source, split)
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        raise DataError(f"expected a path, a name or a dataset of images, got {type(source).__name__}")
    return of_items(source, "the dataset")


def _named(source: str | Path, config: str | None, split: str) -> Images:
    name, path = str(source), Path(source)
    if name == "digits":
        return digits()
    if path.suffix.lower() == ".npz":
        return read_npz(path, split)
    if path.is_file():
        unpack = "; unpack the archive first" if path.suffix.lower() in _ARCHIVES else ""
        raise DataError(
            f"cannot read images from {path}: expected a .npz file, a folder of images or a dataset name{unpack}"
        )
    if path.is_dir():
        if not is_saved(path) and (has_images(path) or next(path.rglob("*.parquet"), None) is None):
            return read_folder(path, split)
    elif isinstance(source, Path) or not _HUB_NAME.fullmatch(name):
        raise DataError(f"folder {path} does not exist: check the path (relative paths start at {Path.cwd()})")
    way_out = "Images can also be in a folder, but there is none of this name, or in a .npz file"
    return of_table(open_table(name, config, split, way_out), name)


def _datasets_library() -> ModuleType | None:
    """The library if it has been imported; before that, no object can be one of its tables."""
    return sys.modules.get("datasets")
