"""Images from folders: one per class, or one without labels, optionally below ``train``, ``val``, ``test``."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from abkd.data.images._images import Images
from abkd.data.images._pixels import Files, printable
from abkd.data.images._splits import HELD_OUT, SPLITS, spellings
from abkd.data.images._walk import LeftOut, folders_in, images_below, images_in, place
from abkd.errors import DataError

logger = logging.getLogger("abkd")


def read_folder(root: Path, split: str) -> Images:
    """The images in ``root``; if its subfolders are named after splits, those of one split.

    Folders next to the splits are ignored if they have no images. In a folder without splits, the sorted folder names
    are the classes, even if a folder is empty. Images are detected by content, whatever the file name; files that are
    left out are counted and reported, except hidden files and system files (Thumbs.db).
    """
    root = root.absolute()
    if splits := _splits_in(root):
        if above := images_in(root, LeftOut()):
            names = ", ".join(map(printable, splits))
            logger.warning("abkd: %s: %d image(s) next to %s are ignored", printable(root.name), len(above), names)
        root = root / _chosen(splits, split, root)
    folders = folders_in(root)
    name, left_out = printable(root.name), LeftOut()
    loose = images_in(root, left_out)
    here = frozenset({place(root)})
    by_class = [[f"{folder}/{path}" for path in images_below(root / folder, left_out, here)] for folder in folders]
    paths = [path for group in by_class for path in group]
    left_out.warn(name)
    if not (paths or loose):
        raise DataError(f"{printable(str(root))} has no images: expected image files{left_out}")
    if paths and loose:
        raise DataError(
            f"{printable(str(root))}: {len(paths)} images are in class folders and {len(loose)} next to them "
            f"({printable(loose[0])}, …), which therefore have no label. Label all or none: move them"
        )
    if loose:
        return Images(Files(root, loose), name=name)
    labels = np.repeat(np.arange(len(folders)), [len(group) for group in by_class])
    return Images(Files(root, paths), labels=labels, class_names=folders, name=name)


def splits_of_folder(root: Path) -> tuple[str, ...]:
    """Held-out splits (validation, test) of a folder whose subfolders are splits."""
    splits = _splits_in(root)
    return tuple(split for split in HELD_OUT if named_as(split, splits))


def named_as(split: str, folders: Iterable[str]) -> list[str]:
    """The folders named after this split, ignoring case, with the exact name first."""
    names = spellings(split.casefold())
    found = [folder for folder in folders if folder.casefold() in names]
    return sorted(found, key=lambda folder: (folder != split, names.index(folder.casefold())))


def has_images(root: Path) -> bool:
    """Whether there is any image, at any depth."""
    return next(images_below(root, LeftOut()), None) is not None


def _splits_in(root: Path) -> list[str]:
    """The split folders in ``root``; none if its subfolders are classes.

    A class may have the name of a split: a single such folder, with images directly in it, among others with images.
    """
    folders = folders_in(root)
    splits = [folder for folder in folders if folder.casefold() in SPLITS]
    others = [folder for folder in folders if folder not in splits and splits and has_images(root / folder)]
    if not others:
        return splits
    if len(splits) == 1 and images_in(root / splits[0], LeftOut()):
        return []
    where, named = printable(str(root)), ", ".join(map(printable, splits))
    raise DataError(
        f"{where}: {named} {'has the name of a split' if len(splits) == 1 else 'have the names of splits'}, but there "
        f"are also images in {', '.join(map(printable, others[:5]))}{', …' * (len(others) > 5)}, so the classes are "
        f"ambiguous: specify the folder to train on ({where}/{printable(splits[0])}) and the one to evaluate on "
        "(eval_dir), or rename or move the folders that are not classes"
    )


def _chosen(splits: list[str], split: str, root: Path) -> str:
    there = [name for name in named_as(split, splits) if has_images(root / name)] or named_as(split, splits)
    if len(there) != 1:
        which = f"has {' and '.join(map(printable, there))} for" if there else "has no"
        way_out = "use one of them" if there else f"use one of {', '.join(map(printable, splits))}"
        raise DataError(f"{printable(str(root))} {which} split {split!r}: {way_out}")
    return there[0]
