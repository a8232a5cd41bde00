"""The number of positions that a model supports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from abkd.models.parts import text_config, without_peft

_TABLE = re.compile(r"(^|\.)(wpe|position_embeddings?|embed_positions|positions_embed|pos_embed\w*)$")
_DECLARED = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True, slots=True)
class Positions:
    """``count`` positions; a ``table`` ends there, rotary ones continue beyond the length that was trained on."""

    count: int
    table: bool


def positions_of(model: nn.Module) -> Positions | None:
    """The positions of a language model; None if it has no limit (ALiBi, state space models)."""
    rows = learned_positions(model)
    if rows is not None:
        return Positions(rows, table=True)
    config = text_config(model)
    declared = (getattr(config, name, None) for name in _DECLARED)
    count = next((value for value in declared if isinstance(value, int)), None)
    return Positions(count, table=False) if count is not None and _is_rotary(model) else None


def learned_positions(model: nn.Module) -> int | None:
    """The size of a model's position table (learned, or precomputed); None if it has none."""
    parts = _parts(model)
    tables = [_rows(part) for name, part in parts.items() if _TABLE.search(name)]
    tensors = (
        (f"{name}.{own}", each)
        for name, part in parts.items()
        for own, each in (*part.named_buffers(recurse=False), *vars(part).items())  # GPT-J's was no buffer once
        if isinstance(each, Tensor)
    )
    tables += [each.shape[0] for name, each in tensors if _TABLE.search(name) and each.ndim == 2]
    return min((rows for rows in tables if rows is not None), default=None)


def first_position(model: nn.Module) -> int:
    """The position id of the first token: RoBERTa's come after the padding index, all others start at 0."""
    return max((_padding(part) for name, part in _parts(model).items() if _TABLE.search(name)), default=0)


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    backbone = without_peft(model)
    return dict(_of_text(backbone, {type(backbone.config), type(text_config(backbone))}))


def _of_text(part: nn.Module, configs: set[type], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules by name, without those whose configuration is of another type: vision and audio towers."""
    yield name, part
    for own, child in part.named_children():
        if not hasattr(child, "config") or type(child.config) in configs:
            yield from _of_text(child, configs, f"{name}.{own}" if name else own)


def _rows(part: nn.Module) -> int | None:
    """The positions of an embedding; some families reserve its first rows (``offset``)."""
    if not isinstance(part, nn.Embedding):
        return None
    return part.num_embeddings - int(getattr(part, "offset", 0) or 0) - _padding(part)


def _padding(part: nn.Module) -> int:
    """The number of first rows of a table that belong to padding, and that its own forward does not skip."""
    if not isinstance(part, nn.Embedding) or hasattr(part, "offset") or part.padding_idx is None:
        return 0
    return part.padding_idx + 1


def _is_rotary(model: nn.Module) -> bool:
    return any("rotary" in type(part).__name__.lower() for part in model.modules())
