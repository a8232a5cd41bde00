"""Images from folders: one folder a class, or one folder without labels, perhaps below ``train``, ``val``, ``test``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from abkd.data.images._images import Images
from abkd.data.images._pixels import Files
from abkd.data.images._splits import HELD_OUT, SPLITS, spellings
from abkd.errors import DataError

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def read_folder(root: Path, split: str) -> Images:
    """The images below ``root``; where all its folders are called as splits are, those of one split.

    Folder names in their order are the classes, also where a folder is empty. Hidden files and whatever is not an
    image by its suffix are left out.
    """
    root = root.absolute()
    if (folders := _folders(root)) and SPLITS.issuperset(folders):
        root = root / _chosen(folders, split, root)
        folders = _folders(root)
    loose = sorted(entry.name for entry in root.iterdir() if _is_image(entry))
    by_class = [[f"{folder}/{path}" for path in _below(root / folder)] for folder in folders]
    paths = [path for group in by_class for path in group]
    if not (paths or loose):
        raise DataError(f"{root} has no images: expected files that end in {' '.join(sorted(SUFFIXES))}")
    if paths and loose:
        raise DataError(
            f"{root}: {len(paths)} images lie in class folders and {len(loose)} beside them ({loose[0]}, …), so these "
            "have no label. Label all or none: move them"
        )
    if loose:
        return Images(Files(root, loose), name=root.name)
    labels = np.repeat(np.arange(len(folders)), [len(group) for group in by_class])
    return Images(Files(root, paths), labels=labels, class_names=folders, name=root.name)


def splits_of_folder(root: Path) -> tuple[str, ...]:
    """Which of validation and test a folder has, where all its folders are called as splits are."""
    folders = _folders(root)
    if not folders or not SPLITS.issuperset(folders):
        return ()
    return tuple(split for split in HELD_OUT if any(name in folders for name in spellings(split)))


def has_images(root: Path) -> bool:
    """Whether there is any image, however deep."""
    return next(_below(root), None) is not None


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _chosen(folders: list[str], split: str, root: Path) -> str:
    found = next((name for name in spellings(split) if name in folders), None)
    if found is None:
        raise DataError(f"{root} has no split {split!r}: there are {', '.join(folders)}")
    return found


def _below(root: Path) -> Iterator[str]:
    """Images at any depth, relative to ``root``, in the same order on every machine."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            if _is_image(Path(folder, name)):
                yield Path(folder, name).relative_to(root).as_posix()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
