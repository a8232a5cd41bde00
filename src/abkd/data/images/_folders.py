"""Images from folders: one folder a class, or one folder without labels, perhaps below ``train``, ``val``, ``test``."""

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
    """The images below ``root``; where its folders are splits by their names, those of one split.

    A folder without images that is called otherwise makes no classes of splits. Else folder names in their order are
    the classes, also where a folder is empty. What an image is, its content tells, whatever the file is called; files
    that are left out are counted and said, but for hidden ones and what systems put there (Thumbs.db).
    """
    root = root.absolute()
    if splits := _splits_in(root):
        if above := images_in(root, LeftOut()):
            names = ", ".join(map(printable, splits))
            logger.warning("abkd: %s: %d image(s) beside %s are passed over", printable(root.name), len(above), names)
        root = root / _chosen(splits, split, root)
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
    """Which of validation and test a folder has, where its folders are splits."""
    splits = _splits_in(root)
    return tuple(split for split in HELD_OUT if named_as(split, splits))


def named_as(split: str, folders: Iterable[str]) -> list[str]:
    """Those of the folders that are called as this split is, in whatever case, its own name first."""
    names = spellings(split.casefold())
    found = [folder for folder in folders if folder.casefold() in names]
    return sorted(found, key=lambda folder: (folder != split, names.index(folder.casefold())))


def has_images(root: Path) -> bool:
    """Whether there is any image, however deep."""
    return next(images_below(root, LeftOut()), None) is not None


def _splits_in(root: Path) -> list[str]:
    """The folders of splits in ``root``; none where its folders are classes.

    A class may be called as a split is: a single such folder that holds its images itself, among others with images.
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
        f"{where}: {named} {'is called as a split is' if len(splits) == 1 else 'are called as splits are'}, and beside "
        f"there are images in {', '.join(map(printable, others[:5]))}{', …' * (len(others) > 5)}, so which are classes "
        f"cannot be told: name the folder to learn from ({where}/{printable(splits[0])}) and the one to evaluate on "
        "(eval_dir), or rename or move those that are no classes"
    )


def _chosen(splits: list[str], split: str, root: Path) -> str:
    there = [name for name in named_as(split, splits) if has_images(root / name)] or named_as(split, splits)
    if len(there) != 1:
        which = f"has {' and '.join(map(printable, there))} for" if there else "has no"
        way_out = "name one of them" if there else f"there are {', '.join(map(printable, splits))}; name one of them"
        raise DataError(f"{printable(str(root))} {which} split {split!r}: {way_out}")
    return there[0]
