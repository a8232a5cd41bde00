"""Remarks about rows that are used all the same: counted where rows are read, said once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger("abkd")


class Remark(NamedTuple):
    """A sentence about a row, the same for all rows of a kind. ``warning``: something in the row is not used."""

    text: str
    warning: bool = False


def say(remarks: Mapping[Remark, int], name: str, rows: int) -> None:
    """One line for each remark, with the number of rows it is about; about rows to evaluate on the warnings only."""
    for remark, count in sorted(remarks.items()):
        if remark.warning or name != "eval":
            level = logging.WARNING if remark.warning else logging.INFO
            logger.log(level, "abkd: %s, %s of %s rows: %s", name, f"{count:,}", f"{rows:,}", remark.text)
