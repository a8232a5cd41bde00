"""Images from folders: one folder a class, or one folder without labels, perhaps below ``train``, ``val``, ``test``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from abkd.data.images._images import Images
from abkd.data.images._pixels import Files, printable
from abkd.data.images._splits import HELD_OUT, SPLITS, spellings
from abkd.data.images._walk import LeftOut, folders_in, images_below, images_in, place
from abkd.errors import DataError


def read_folder(root: Path, split: str) -> Images:
    """The images below ``root``; where all its folders are called as splits are, those of one split.

    Folder names in their order are the classes, also where a folder is empty. What an image is, its content tells,
    whatever the file is called; files that are left out are counted and said, but for hidden ones and what systems
    put there (Thumbs.db).
    """
    root = root.absolute()
    if (folders := folders_in(root)) and SPLITS.issuperset(folders):
        root = root / _chosen(folders, split, root)
        folders = folders_in(root)
    name, left_out = printable(root.name), LeftOut()
    loose = images_in(root, left_out)
    here = frozenset({place(root)})
    by_class = [[f"{folder}/{path}" for path in images_below(root / folder, left_out, here)] for folder in folders]
    paths = [path for group in by_class for path in group]
    left_out.say(name)
    if not (paths or loose):
        raise DataError(f"{printable(str(root))} has no images: expected image files{left_out}")
    if paths and loose:
        raise DataError(
            f"{printable(str(root))}: {len(paths)} images lie in class folders and {len(loose)} beside them "
            f"({printable(loose[0])}, …), so these have no label. Label all or none: move them"
        )
    if loose:
        return Images(Files(root, loose), name=name)
    labels = np.repeat(np.arange(len(folders)), [len(group) for group in by_class])
    return Images(Files(root, paths), labels=labels, class_names=folders, name=name)


def splits_of_folder(root: Path) -> tuple[str, ...]:
    """Which of validation and test a folder has, where all its folders are called as splits are."""
    folders = folders_in(root)
    if not folders or not SPLITS.issuperset(folders):
        return ()
    return tuple(split for split in HELD_OUT if any(name in folders for name in spellings(split)))


def has_images(root: Path) -> bool:
    """Whether there is any image, however deep."""
    return next(images_below(root, LeftOut()), None) is not None


def _chosen(folders: list[str], split: str, root: Path) -> str:
    found = next((name for name in spellings(split) if name in folders), None)
    if found is None:
        raise DataError(
            f"{printable(str(root))} has no split {split!r}: there are {', '.join(map(printable, folders))}"
        )
    return found
