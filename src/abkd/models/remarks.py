"""The package's logger, and shortened lists of names for messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger("abkd")


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names of a list, and the number of further ones."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
