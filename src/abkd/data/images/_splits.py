"""The names that parts of a data set go by."""

from __future__ import annotations

_VALIDATION = ("validation", "val", "valid")
SPLITS = frozenset((*_VALIDATION, "train", "test"))


def spellings(split: str) -> tuple[str, ...]:
    """The name itself, then what else the same part is called."""
    return (split, *(other for other in _VALIDATION if other != split)) if split in _VALIDATION else (split,)
