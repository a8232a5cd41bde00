"""Reading numbers from log records, dicts in which any key may be absent, null or not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

Record = Mapping[str, Any]


def series(records: Iterable[Record], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of ``key`` in the records that hold a finite number for it."""
    held = [record for record in having(records, key) if is_number(record.get("step"))]
    return [float(record["step"]) for record in held], [float(record[key]) for record in held]


def having(records: Iterable[Record], key: str) -> list[Record]:
    """The records in which ``key`` is a finite number."""
    return [record for record in records if is_number(record.get(key))]


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float (not a bool), and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
