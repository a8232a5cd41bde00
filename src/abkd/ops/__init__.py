"""The chunked op and the plain loss: how a loss is computed, not which. Torch only."""

from abkd.ops._divergence_loss import divergence_loss
from abkd.ops._head import Head
from abkd.ops._linear_divergence import linear_divergence, plan_chunks
from abkd.ops._logits import teacher_logits
from abkd.ops._row_facts import RowFacts, RowWeight
from abkd.ops._row_loss_spec import RowLossSpec
from abkd.ops._row_metrics import row_metrics
from abkd.ops._row_values import row_values
from abkd.ops._types import Averaged, ChunkPlan, Dense, Projected, RowLosses, Rows, TeacherRows, TopK

__all__ = [
    "Averaged",
    "ChunkPlan",
    "Dense",
    "Head",
    "Projected",
    "RowFacts",
    "RowLossSpec",
    "RowLosses",
    "RowWeight",
    "Rows",
    "TeacherRows",
    "TopK",
    "divergence_loss",
    "linear_divergence",
    "plan_chunks",
    "row_metrics",
    "row_values",
    "teacher_logits",
]
