"""The names that parts of a data set go by."""

from __future__ import annotations

_VALIDATION = ("validation", "val", "valid")
HELD_OUT = ("validation", "test")
"""Parts to evaluate on, the better one first: a test split is for the end."""
SPLITS = frozenset((*_VALIDATION, "train", "test"))


def spellings(split: str) -> tuple[str, ...]:
    """The name itself, then what else the same part is called."""
    return (split, *(other for other in _VALIDATION if other != split)) if split in _VALIDATION else (split,)
