"""The names that parts of a data set go by."""

from __future__ import annotations

_PARTS = (("train", "training"), ("validation", "val", "valid", "dev", "eval"), ("test", "testing"))
HELD_OUT = ("validation", "test")
"""Parts to evaluate on, the better one first: a test split is for the end."""
SPLITS = frozenset(name for part in _PARTS for name in part)


def spellings(split: str) -> tuple[str, ...]:
    """The name itself, then what else the same part is called."""
    part = next((part for part in _PARTS if split in part), (split,))
    return (split, *(other for other in part if other != split))
