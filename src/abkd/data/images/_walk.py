"""Find the image files in a folder, and count the files that are not images."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from abkd.data.images._decode import is_image_file
from abkd.data.images._kinds import PLUGINS
from abkd.data.images._pixels import printable
from abkd.errors import DataError

logger = logging.getLogger("abkd")

SUFFIXES = frozenset((".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
"""Suffixes of files that count as images without being opened; other files are inspected."""

Place = tuple[int, int]

_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", "#recycle"))


class LeftOut:
    """Files that are not images, counted by suffix."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count a file."""
        self._counts[printable(Path(name).suffix.lower()) or "without a suffix"] += 1

    def __str__(self) -> str:
        """The counts as a part of a sentence; empty if nothing was left out."""
        counted = [f"{count} {suffix}{_plugin(suffix)}" for suffix, count in self._counts.most_common(10)]
        return f"; left out: {', '.join(counted)}" if counted else ""

    def warn(self, name: str) -> None:
        """Warn about the files that were left out, if any."""
        if self._counts:
            count = self._counts.total()
            logger.warning("abkd: %s: %d file%s cannot be read as images%s", name, count, "s" * (count > 1), self)


def folders_in(root: Path) -> list[str]:
    """The folders in ``root``, sorted, without hidden folders and system folders.

    Raises DataError if it cannot be read.
    """
    return [name for name in _names(root) if (root / name).is_dir()]


def images_in(root: Path, left_out: LeftOut) -> list[str]:
    """The image files in ``root`` itself, sorted."""
    files = [name for name in _names(root) if not (root / name).is_dir()]
    return [name for name in files if _is_image(root / name, left_out)]


def images_below(root: Path, left_out: LeftOut, above: frozenset[Place] = frozenset()) -> Iterator[str]:
    """Image files at any depth, relative to ``root``, in the same order on every machine.

    Links are followed, except to a folder that contains them, or to one of ``above``.
    """
    here = above | {place(root)}
    if len(here) == len(above):
        return
    yield from images_in(root, left_out)
    for name in folders_in(root):
        for path in images_below(root / name, left_out, here):
            yield f"{name}/{path}"


def place(folder: Path) -> Place:
    """Identity of a folder, independent of its name."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _names(root: Path) -> list[str]:
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise DataError(f"the folder {printable(str(root))} cannot be read: {error.strerror}") from error
    return [name for name in names if not name.startswith(".") and name.lower() not in _SYSTEM_FILES]


def _is_image(path: Path, left_out: LeftOut) -> bool:
    found = path.suffix.lower() in SUFFIXES or is_image_file(path)
    if not found:
        left_out.add(path.name)
    return found


def _plugin(suffix: str) -> str:
    return f" (pip install {PLUGINS[suffix]})" if suffix in PLUGINS else ""
