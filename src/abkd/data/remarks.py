"""Remarks about rows that are used nevertheless: counted while rows are read, logged once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger("abkd")


class Remark(NamedTuple):
    """A sentence about a row, the same for all rows of a kind. ``warning``: a part of the row is not used."""

    text: str
    warning: bool = False


def log_remarks(remarks: Mapping[Remark, int], name: str, rows: int) -> None:
    """Log each remark once, with the number of rows it applies to; for evaluation rows, only the warnings."""
    for remark, count in sorted(remarks.items()):
        if remark.warning or name != "eval":
            level = logging.WARNING if remark.warning else logging.INFO
            logger.log(level, "abkd: %s, %s of %s rows: %s", name, f"{count:,}", f"{rows:,}", remark.text)
