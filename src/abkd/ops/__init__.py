"""The op and the plain loss: memory and speed, no policy. Torch only."""

from abkd.ops._divergence_loss import divergence_loss
from abkd.ops._linear_divergence import linear_divergence, plan_for, row_metrics
from abkd.ops._types import Dense, Head, Plan, Projected, RowLosses

__all__ = [
    "Dense",
    "Head",
    "Plan",
    "Projected",
    "RowLosses",
    "divergence_loss",
    "linear_divergence",
    "plan_for",
    "row_metrics",
]
