"""Names of the splits of a dataset."""

from __future__ import annotations

_PARTS = (("train", "training"), ("validation", "val", "valid", "dev", "eval"), ("test", "testing"))
HELD_OUT = ("validation", "test")
"""Splits to evaluate on, the preferred one first: the test split is for the final evaluation."""
SPLITS = frozenset(name for part in _PARTS for name in part)


def spellings(split: str) -> tuple[str, ...]:
    """The name itself, then other names of the same split."""
    part = next((part for part in _PARTS if split in part), (split,))
    return (split, *(other for other in part if other != split))
