"""The per-row results of several terms as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abkd.ops import RowLosses


def together(parts: Sequence[RowLosses]) -> RowLosses | None:
    """The sum of losses and divergences; columns common to all terms come from the first term that has the row.

    None if there are no parts.
    """
    if not parts:
        return None
    first = parts[0]
    for part in parts[1:]:
        free = (first.weight == 0) & (part.weight != 0)

        def either(name: str, first: RowLosses = first, part: RowLosses = part, free: Tensor = free) -> Tensor:
            mine, other = getattr(first, name), getattr(part, name)
            return torch.where(free, other, mine)

        first = RowLosses(
            loss=first.loss + part.loss,
            divergence=first.divergence + part.divergence,
            cross_entropy=None if first.cross_entropy is None else either("cross_entropy"),
            student_entropy=either("student_entropy"),
            teacher_entropy=either("teacher_entropy"),
            agreement=either("agreement"),
            weight=either("weight"),
            plan=part.plan,
        )
    return first
