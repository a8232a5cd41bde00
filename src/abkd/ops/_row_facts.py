"""The arguments of functions that compute one number for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowFacts:
    """Some rows of a call, as a function that computes one number for each of them sees them; constants throughout.

    Attributes:
        log_p, log_q: ``[n, V]`` the teacher's and the student's log-probabilities at the temperature of the divergence.
            With a ``TopK`` teacher ``[n, k+1]``, the tail last (``[n, k]`` if every class is known).
        targets: ``[n]`` each row's label as a column of ``log_p``; None without labels.
        index: int64 ``[n]`` each row's position in the call.
        state: what a function that has state opened for the run; None unless the caller of the op adds it.
        origin, sequence: ``[n]`` which writer and which sequence a row belongs to; None unless the caller of the op
            adds them, by ``index``.
    """

    log_p: Tensor
    log_q: Tensor
    targets: Tensor | None
    index: Tensor
    origin: Tensor | None = None
    sequence: Tensor | None = None
    state: Any = None


RowWeight = Callable[[RowFacts], Tensor]
"""The weight >= 0 of each row, ``[n]``, a constant in the gradient."""


def number_of_rows(
    function: RowWeight, log_p: Tensor, log_q: Tensor, targets: Tensor | None, index: Tensor | None
) -> Tensor:
    """The numbers of ``function`` for some rows, as a constant in the dtype of ``log_q``."""
    assert index is not None
    return function(RowFacts(log_p.detach(), log_q.detach(), targets, index)).detach().to(log_q.dtype)
