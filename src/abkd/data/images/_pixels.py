"""Sources of images: an array, files, a table of the datasets library, or a user's dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from abkd.data.bad_rows import BadRowError, cannot_be_read
from abkd.data.images._decode import Uint8
from abkd.errors import AbkdError


def printable(name: str) -> str:
    r"""A name as text that can be written anywhere: bytes of a file name that are not UTF-8 become ``\xff``."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate, which JSON allows
        return name.encode("utf-8", "backslashreplace").decode()


class Indexed(Protocol):
    """Items by number: a sequence, a torch dataset or a table."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> object: ...


class Pixels(Protocol):
    """Images by index, in their stored form. ``thread_safe``: whether several threads may read at once."""

    thread_safe: ClassVar[bool]

    def __len__(self) -> int: ...

    def raw(self, row: int) -> object:
        """The image, in a form that :func:`abkd.data.images._decode.encoded` accepts."""
        ...

    def where(self, row: int) -> str:
        """Name of the image for messages."""
        ...


@dataclass(frozen=True, slots=True)
class Array:
    """Checked pixels [N, H, W, C], C of 1 or 3."""

    array: Uint8
    thread_safe: ClassVar[bool] = False

    def __post_init__(self) -> None:
        kept = self.array.view()
        kept.flags.writeable = False  # an augmentation that writes into its input would change the data
        object.__setattr__(self, "array", kept)

    def __len__(self) -> int:
        return len(self.array)

    def raw(self, row: int) -> Uint8:
        return self.array[row]

    def where(self, row: int) -> str:
        return f"row {row + 1}"


@dataclass(frozen=True, slots=True)
class Files:
    """Image files below ``root``; ``paths`` are relative to it."""

    root: Path
    paths: Sequence[str]
    thread_safe: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.paths)

    def raw(self, row: int) -> Path:
        return self.root / self.paths[row]

    def where(self, row: int) -> str:
        return printable(f"{self.root.name}/{self.paths[row]}")


@dataclass(frozen=True, slots=True)
class Items:
    """Anything with a length and items; ``pick`` takes the image out of an item."""

    items: Indexed
    pick: Callable[[Any], object]
    thread_safe: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.items)

    def raw(self, row: int) -> object:
        try:
            return self.pick(self.items[row])
        except AbkdError:
            raise
        except Exception as error:  # raised by user code
            raise BadRowError("cannot be read", cannot_be_read(error)) from error

    def where(self, row: int) -> str:
        return f"row {row + 1}"
