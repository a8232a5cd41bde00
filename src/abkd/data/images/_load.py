"""One door for images, wherever they come from."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
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


def load_images(source: Any, *, config: str | None = None, split: str = "train") -> Images:
    """Images, and labels where there are any, of whatever holds them; nothing but an array is decoded yet.

    Args:
        source: the path of a ``.npz`` file or of a folder of images, ``"digits"`` (scikit-learn's), a dataset on the
            hub or saved to disk, a ``datasets.Dataset``, a torch ``Dataset`` or any sequence of dicts or of pairs
            (image, label), or a dict of arrays named as in a ``.npz`` file.
        config: chooses inside a hub dataset.
        split: chooses where the source has splits (folders ``train``, ``val``, ``test``; arrays ``x_train``,
            ``x_test``); a source without is taken whole.

    Raises:
        DataError: not there, not readable, no images, pixels that are not 8-bit numbers, labels in part.
    """
    if isinstance(source, Images):
        return source
    images = _open(source, config, split)
    if not len(images):
        raise DataError(f"{images.name or 'the data set'} has no images: expected at least one")
    images.say_empty_classes()
    return images


def held_out_splits(source: str) -> tuple[str, ...]:
    """Which of "validation" and "test" a .npz file or a folder has beside what is trained on."""
    path = Path(source)
    if path.suffix.lower() == ".npz" and path.is_file():
        return splits_of_npz(path)
    return splits_of_folder(path) if source != "digits" and path.is_dir() and not is_saved(path) else ()


class Beside(NamedTuple):
    """Images to evaluate on that lie beside those to train on. ``name``: where."""

    name: str
    images: Images


def held_out_beside(source: str) -> Beside | None:
    """The validation or test images beside the training images of ``source``; None where there are none.

    They are the better one of its own splits, or, of a folder called train, of the folders that it lies among.
    """
    path = Path(source)
    if splits := held_out_splits(source):
        images = load_images(source, split=splits[0])
        name = f"{path}, {splits[0]}" if path.suffix.lower() == ".npz" else str(path / images.name)
        return Beside(printable(name), images)
    if source == "digits" or not named_as("train", [path.absolute().name]):
        return None
    parent, folders = path.absolute().parent, []
    with suppress(DataError):  # what lies among folders that cannot be listed is not looked for
        folders = folders_in(parent)
    found = next((name for split in HELD_OUT for name in named_as(split, folders) if has_images(parent / name)), None)
    return None if found is None else Beside(printable(str(path.parent / found)), load_images(parent / found))


def _open(source: Any, config: str | None, split: str) -> Images:
    if isinstance(source, str | Path):
        return _named(source, config, split)
    if isinstance(source, np.ndarray | Tensor):
        return of_arrays({"images": source}, split)
    table = _datasets_library()
    if table is not None and isinstance(source, table.DatasetDict):
        if split not in source:
            raise DataError(f"the dataset has no split {split!r}: there are {', '.join(map(str, source))}")
        source = source[split]
    if table is not None and isinstance(source, table.Dataset):
        return of_table(source, "the data set")
    if isinstance(source, Mapping):
        return of_arrays(source, split)
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        raise DataError(f"expected images: a path, a name, or a data set of images, got {type(source).__name__}")
    return of_items(source, "the data set")


def _named(source: str | Path, config: str | None, split: str) -> Images:
    name, path = str(source), Path(source)
    if name == "digits":
        return digits()
    if path.suffix.lower() == ".npz":
        return read_npz(path, split)
    if path.is_file():
        unpack = "; unpack the archive first" if path.suffix.lower() in _ARCHIVES else ""
        raise DataError(
            f"cannot read images from {path}: expected a .npz file, a folder of images or a dataset's name{unpack}"
        )
    if path.is_dir():
        if not is_saved(path) and (has_images(path) or next(path.rglob("*.parquet"), None) is None):
            return read_folder(path, split)
    elif isinstance(source, Path) or not _HUB_NAME.fullmatch(name):
        raise DataError(f"folder {path} does not exist: check the path (relative paths start at {Path.cwd()})")
    way_out = "Images also come from a folder, which is not there, or from a .npz file"
    return of_table(open_table(name, config, split, way_out), name)


def _datasets_library() -> Any:
    """The library where it was imported; before that, nothing can be one of its tables."""
    return sys.modules.get("datasets")
