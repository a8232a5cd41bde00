"""Account of a data set: how its rows became examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Account:
    """Counts of rows: all that came, ``dropped`` by reason, ``truncated`` by max_length (by how many trained tokens:
    ``cut_tokens``), ``rendered`` by a chat template, ``plain`` prompts and completions.
    """

    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    cut_tokens: int = 0
    rendered: int = 0
    plain: int = 0
