"""From sums over held-out rows to the metrics, and what they say about the teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

logger = logging.getLogger("abkd")


def metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Means over the rows; the names are a contract (``eval_`` goes before them)."""
    rows = max(totals["rows"], 1.0)
    return {
        "loss": totals["loss"] / rows,
        "forward_kl": totals["forward_kl"] / rows,
        "reverse_kl": totals["reverse_kl"] / rows,
        "top1_agreement": totals["agreement"] / rows,
        "perplexity": _exp(totals["cross_entropy"] / rows),
        "teacher_perplexity": _exp(totals["teacher_cross_entropy"] / rows),
    }


def warn_of_weak_teacher(perplexity: float, teacher_perplexity: float) -> None:
    """Say so when the student has nothing to learn from its teacher about this data."""
    if teacher_perplexity >= perplexity:
        logger.warning(
            "abkd: on the held-out rows the teacher (perplexity %.4g) is no better than the student (%.4g): the "
            "student may get worse by imitating it. Fine-tune the teacher on this data first, or add ce_weight to "
            "learn from the text itself",
            teacher_perplexity,
            perplexity,
        )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
