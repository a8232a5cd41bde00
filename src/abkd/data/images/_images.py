"""Images with or without labels, decoded on access."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from abkd.data.formats import BadRowError
from abkd.data.images._decode import Uint8, decoded, digest, encoded, quiet, size_of
from abkd.data.images._pixels import Array, Pixels, printable
from abkd.data.labels import empty_classes, repeated
from abkd.data.progress import progress
from abkd.errors import DataError

logger = logging.getLogger("abkd")


class Images:
    """N images in order.

    ``labels``: int64 [N], or None if there are none. ``class_names``: the name of each class, or None.
    ``name``: for messages.
    """

    def __init__(
        self,
        pixels: Pixels,
        *,
        labels: NDArray[np.int64] | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "",
        rows: NDArray[np.int64] | None = None,
        digests: NDArray[np.uint8] | None = None,
    ) -> None:
        self.labels, self.name = labels, name
        self.class_names = None if class_names is None else tuple(map(printable, class_names))
        self._pixels, self._digests = pixels, digests
        self._rows = np.arange(len(pixels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        classes = "" if self.class_names is None else f", {len(self.class_names)} classes"
        return f"<{len(self)} images{' of ' * bool(self.name)}{self.name}{classes}>"

    @property
    def num_classes(self) -> int | None:
        """The number of class names; without names, the largest label + 1; None without both."""
        if self.class_names is not None:
            return len(self.class_names)
        return None if self.labels is None else int(self.labels.max()) + 1

    def without_labels(self) -> Images:
        """The same images without labels, but with the class names."""
        return Images(
            self._pixels, class_names=self.class_names, name=self.name, rows=self._rows, digests=self._digests
        )

    def with_classes(self, class_names: Sequence[str]) -> Images:
        """The same images, with labels renumbered by name to the order of ``class_names``.

        Raises DataError if a class is missing there, or is there more than once.
        """
        mine, name = self.class_names or (), self.name or "the held-out images"
        if mine == tuple(class_names):  # nothing to renumber: two classes may have one name
            return self
        place = {name: number for number, name in enumerate(class_names)}
        if strange := [each for each in mine if each not in place]:
            raise DataError(
                f"{name} has {'classes' if len(strange) > 1 else 'a class'} {_some(list(map(repr, strange)))} that the "
                f"training images do not have ({_some(class_names)}): both need the same classes"
            )
        if twice := sorted(set(mine).intersection(repeated(mine) + repeated(class_names))):
            raise DataError(
                f"{name} differs from the training images in classes or their order, and several classes are named "
                f"{_some(list(map(repr, twice)))}, so labels cannot be matched by name: give each class a unique name, "
                "or use the same list of classes for both"
            )
        if missing := [each for each in class_names if each not in mine]:
            logger.warning("abkd: %s has no images of these training classes: %s", name, _some(missing))
        labels = None if self.labels is None else np.array([place[name] for name in mine], dtype=np.int64)[self.labels]
        return Images(
            self._pixels,
            labels=labels,
            class_names=class_names,
            name=self.name,
            rows=self._rows,
            digests=self._digests,
        )

    @property
    def pixels(self) -> Pixels:
        """The source of these images, which may have more of them."""
        return self._pixels

    def image(self, index: int) -> Uint8:
        """Pixels uint8 [H, W, C], C of 1 or 3. Raises DataError, with the image's name, if it cannot be read."""
        if isinstance(self._pixels, Array):
            return self._pixels.raw(self._row(index))
        try:
            with quiet():
                return decoded(self.content(index))
        except BadRowError as error:
            raise DataError(f"{self.where(index)}: {error}") from error

    def content(self, index: int) -> bytes | Uint8:
        """The bytes of the image's file, or its pixels. Raises BadRowError."""
        return encoded(self._pixels.raw(self._row(index)))

    def where(self, index: int) -> str:
        """Name of the image for messages: ``photos/cat/3.png``, or ``row 7``, counted from 1."""
        return self._pixels.where(self._row(index))

    def take(self, indices: Iterable[int]) -> Images:
        """The images at ``indices``, which keep their names and classes."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return Images(
            self._pixels,
            labels=None if self.labels is None else self.labels[chosen],
            class_names=self.class_names,
            name=self.name,
            rows=self._rows[chosen],
            digests=None if self._digests is None else self._digests[chosen],
        )

    @property
    def digests(self) -> NDArray[np.uint8]:
        """uint8 [N, 16], a hash of each image's content: of its file, or of its pixels if it has none."""
        if self._digests is None:
            found = (self._digest(index) for index in progress(range(len(self)), len(self), f"reading {self.name}"))
            self._digests = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 16)
        return self._digests

    def remember(self, digests: NDArray[np.uint8]) -> None:
        """Store hashes that were computed while the images were read for another purpose."""
        self._digests = digests

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all contents, labels and class names in order; equal on every machine."""
        found = hashlib.sha256(self.digests.tobytes())
        found.update(b"" if self.labels is None else self.labels.astype("<i8").tobytes())
        found.update(repr(self.class_names).encode())
        return found.hexdigest()[:16]

    def uniform_size(self) -> tuple[int, int] | None:
        """(H, W) if all readable images have the same size, according to the headers of their files."""
        if isinstance(self._pixels, Array):
            return self._pixels.array.shape[1:3]
        found: set[tuple[int, int]] = set()
        with quiet():
            for index in range(len(self)):
                with suppress(BadRowError):  # prepare_images rejects it or leaves it out
                    found.add(size_of(self.content(index)))
                if len(found) > 1:
                    return None
        return found.pop() if found else None

    def warn_empty_classes(self) -> None:
        """Warn about classes without images."""
        if without := empty_classes(self.labels, self.class_names):
            count = self.num_classes
            logger.warning(
                "abkd: %s: %d of %d classes have no image: %s", self.name, len(without), count, _some(without)
            )

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return int(self._rows[index])

    def _digest(self, index: int) -> bytes:
        try:
            return digest(self.content(index))
        except BadRowError as error:  # as above
            return digest(f"{self.where(index)}: {error.reason}".encode())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)
