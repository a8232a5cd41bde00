"""Splits for prompt learning with CLIP: the JSON files of CoOp and Dassl, and base and new classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abkd.data.images._images import Images
from abkd.data.images._pixels import Files
from abkd.data.labels import MOST_CLASSES
from abkd.errors import DataError

_PARTS = ("train", "val", "test")


def read_coop_split(file: str | Path, image_dir: str | Path) -> dict[str, Images]:
    """``train``, ``val`` and ``test`` (if present) of a file ``{"train": [[path, label, class name], ...], ...}``.

    Paths are relative to ``image_dir``. All parts have all class names. Raises DataError: a file that does not exist or
    has another format (with the entry), a label with two names, or without one.
    """
    file, root = Path(file), Path(image_dir).absolute()
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist: expected the images that {file.name} lists")
    parts = {part: entries for part, entries in _read(file).items() if part in _PARTS}
    if not any(parts.values()):
        raise DataError(f"{file} has no images: expected lists named {', '.join(_PARTS)}")
    for part, entries in parts.items():
        _check_form(entries, f"{file}, {part}")
    names = _class_names((entry for part in _PARTS for entry in parts.get(part, ())), file)
    found = {part: _images(parts[part], names, root, f"{file.name}, {part}") for part in _PARTS if parts.get(part)}
    for images in found.values():
        images.warn_empty_classes()
    return found


def base_and_new(class_names: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """``(base, new)`` classes: the first half by number, including the middle one of an odd count, and the rest.

    Raises DataError if there are fewer than two classes.
    """
    count = len(class_names)
    if count < 2:
        raise DataError(f"base and new classes need at least two classes, got {count}")
    half = (count + 1) // 2
    return tuple(range(half)), tuple(range(half, count))


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"split file {file} does not exist: check the path (relative paths start at {Path.cwd()})")
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected an object with the lists {', '.join(_PARTS)}, got {type(found).__name__}")
    return found


def _check_form(entries: object, name: str) -> None:
    if not isinstance(entries, list):
        raise DataError(f"{name}: expected a list of [path, label, class name], got {type(entries).__name__}")
    for number, entry in enumerate(entries, 1):
        match entry:
            case [str(), int() as label, str()] if not isinstance(label, bool) and 0 <= label < MOST_CLASSES:
                continue
        raise DataError(f"{name}, entry {number}: expected [path, label from 0, class name], got {entry!r}")


def _class_names(entries: Iterable[tuple[str, int, str]], file: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for _, label, name in entries:
        if names.setdefault(label, name) != name:
            raise DataError(f"{file}: label {label} has two names, {names[label]!r} and {name!r}")
    if without := sorted(set(range(max(names) + 1)) - names.keys()):
        raise DataError(f"{file}: labels go up to {max(names)}, but {without[0]} has no image and no name")
    return tuple(names[label] for label in range(len(names)))


def _images(entries: Sequence[tuple[str, int, str]], names: tuple[str, ...], root: Path, name: str) -> Images:
    labels = np.array([label for _, label, _ in entries], dtype=np.int64)
    return Images(Files(root, [path for path, _, _ in entries]), labels=labels, class_names=names, name=name)
