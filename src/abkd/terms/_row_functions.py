"""Functions of a row: how much it counts, and at which temperature it is compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from abkd.ops import RowFacts
from abkd.stateful import Stateful

Over = Literal["row", "sequence", "step"]


@dataclass(frozen=True)
class Scores:
    """The scores of all rows that a function looks at together, ``[n]`` each; constants.

    Rows of a step come from all its micro-batches and processes; rows with weight 0 and those of other terms are left
    out.

    Attributes:
        score: the function's own number for each row.
        weight: the rows' weights.
        sequence: equal for the rows of one sequence.
        origin: ``Origin.code``.
        targets: the token or class to predict; None without labels.
    """

    score: Tensor
    weight: Tensor
    sequence: Tensor
    origin: Tensor
    targets: Tensor | None = None


class RowFunction(ABC):
    """A frozen function of rows, constant in the gradient; written as its constructor call.

    ``over``: "row" if the number of a row depends on this row alone: it is what a call returns. With "sequence" or
    "step", a call returns a score for each row, and :meth:`combine` turns the scores of all rows of a micro-batch's
    sequences, or of a whole optimizer step over all processes, into numbers. A step's scores take one more forward
    pass of both models, in eval mode without gradient, before its first backward pass; the result does not depend on
    how the step is split.
    """

    over: ClassVar[Over] = "row"

    @property
    def inline(self) -> bool:
        """Whether the op calls it on each chunk of rows, which takes no additional pass over the logits."""
        return False

    def open(self) -> Stateful | None:
        """The state of the function in a run, which a call finds in ``RowFacts.state``; None: it has none."""
        return None

    @abstractmethod
    def __call__(self, facts: RowFacts) -> Tensor:
        """``[n]``: the number of each row, or its score."""

    def combine(self, scores: Scores, state: Stateful | None) -> Tensor:
        """``[n]``: the number of each row, from the scores of all; called once per step, in all processes alike."""
        raise NotImplementedError(f"{type(self).__name__} looks over a {self.over} and needs combine()")


class RowTemperature(RowFunction):
    """The temperature ``> 0`` at which a row's divergence is computed.

    ``base``: the temperature in evaluation and in formulas.
    """

    base: float
