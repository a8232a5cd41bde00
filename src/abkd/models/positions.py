"""How many positions a model can tell apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

_TABLE = re.compile(r"(^|\.)(wpe|position_embeddings?|embed_positions|positions_embed|pos_embed\w*)$")
_DECLARED = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True, slots=True)
class Positions:
    """``count`` of them; a ``table`` ends there, while rotary positions go on beyond what the model was trained for."""

    count: int
    table: bool


def positions_of(model: Any) -> Positions | None:
    """The positions of a language model; None where it has none that could run out (ALiBi, state spaces)."""
    rows = learned_positions(model)
    if rows is not None:
        return Positions(rows, table=True)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    declared = (getattr(config, name, None) for name in _DECLARED)
    count = next((value for value in declared if isinstance(value, int)), None)
    return Positions(count, table=False) if count is not None and _is_rotary(model) else None


def learned_positions(model: Any) -> int | None:
    """The rows of a model's table of positions (learned, or computed beforehand); None where it has none."""
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    tables = [_rows(part) for name, part in backbone.named_modules() if _TABLE.search(name)]
    tables += [buffer.shape[0] for name, buffer in backbone.named_buffers() if _TABLE.search(name) and buffer.ndim == 2]
    return min((rows for rows in tables if rows is not None), default=None)


def _rows(part: nn.Module) -> int | None:
    """The positions of an embedding; some families keep its first rows (``offset``) for something else."""
    if not isinstance(part, nn.Embedding):
        return None
    return part.num_embeddings - int(getattr(part, "offset", 0) or 0)


def _is_rotary(model: nn.Module) -> bool:
    return any("rotary" in type(part).__name__.lower() for part in model.modules())
