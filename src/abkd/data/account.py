"""Summary of how the rows of a dataset became examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Account:
    """Counts of rows: all (``rows``), ``dropped`` by reason, ``truncated`` to max_length (losing ``cut_tokens`` trained
    tokens), ``rendered`` by a chat template, and ``plain`` prompts and completions.
    """

    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    cut_tokens: int = 0
    rendered: int = 0
    plain: int = 0
