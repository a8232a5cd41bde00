"""Numbers of rows that are not computed inside the op: per-row temperatures, and weights that look beyond a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abkd.errors import ConfigError
from abkd.ops import row_values
from abkd.stateful import Stateful
from abkd.terms import RowFunction, Scores, TermInputs, with_facts

if TYPE_CHECKING:
    from abkd.data import Batch

Columns = Mapping[tuple[int, str], Tensor]
"""``[N]`` each: numbers of rows, by index of the term and its field."""


@dataclass(frozen=True)
class StepScores:
    """The scores of rows, for the functions that look over the whole step.

    ``scores``: by index of the term and its field. ``weight``: ``[K, N]``, the row weights of each term.
    """

    scores: Columns
    weight: Tensor


def term_columns(
    index: int, functions: Mapping[str, RowFunction], inputs: TermInputs, of_step: Columns
) -> dict[str, Tensor]:
    """``[N]`` each, by field: the numbers of a term's row functions that the op does not compute itself.

    Raises:
        ConfigError: those of a function that looks over the whole step are missing.
    """
    found: dict[str, Tensor] = {}
    for name, each in functions.items():
        if each.over == "step":
            if (index, name) not in of_step:
                raise ConfigError(f"{each!r} looks over the whole step: pass the columns of the step")
            found[name] = of_step[index, name]
    local = {name: each for name, each in functions.items() if name not in found and not each.inline}
    for name, score in scored(local, inputs).items():
        whole = local[name].over == "sequence"
        state = inputs.state.get(name)
        found[name] = combined(local[name], state, score, inputs.weight, inputs.batch) if whole else score
    return found


def scored(functions: Mapping[str, RowFunction], inputs: TermInputs) -> dict[str, Tensor]:
    """``[N]`` each, by field: what the functions return for the rows, at temperature 1 and without gradient."""
    if not functions:
        return {}
    teacher = None if inputs.teacher is None else inputs.teacher.rows
    assert teacher is not None  # a term with row functions needs the teacher's rows
    wanted = {name: with_facts(each, inputs, name) for name, each in functions.items()}
    return row_values(inputs.student.rows.detach(), teacher, wanted, inputs.batch.targets, plan=inputs.plan)


def combined(
    function: RowFunction, state: Stateful | None, score: Tensor, weight: Tensor, rows: Batch | Scores
) -> Tensor:
    """The numbers of a function for all rows; 1 for rows that do not count."""
    kept = weight.nonzero().squeeze(-1)
    targets = None if rows.targets is None else rows.targets[kept]
    of_kept = Scores(score[kept], weight[kept], rows.sequence[kept], rows.origin[kept], targets)
    return torch.ones_like(score).index_copy(0, kept, function.combine(of_kept, state).to(score.dtype))
