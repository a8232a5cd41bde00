"""abkd: knowledge distillation where every method is a configuration of one objective.

Public names are imported when first used: the mathematics needs only torch, ``abkd --help`` not even that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from abkd.version import __version__ as __version__

if TYPE_CHECKING:
    from abkd.config import DistillConfig
    from abkd.divergences import (
        CLKD,
        DIST,
        DKD,
        AlphaBeta,
        Divergence,
        ForwardKL,
        Hellinger,
        JensenShannon,
        ReverseKL,
        SkewForwardKL,
        SkewReverseKL,
        Standardized,
        TotalVariation,
        TransformedTeacher,
        WeightedSum,
    )
    from abkd.objective import Objective
    from abkd.ops import (
        Averaged,
        ChunkPlan,
        Dense,
        Head,
        Projected,
        RowLosses,
        TopK,
        divergence_loss,
        linear_divergence,
    )
    from abkd.recipe import Recipe
    from abkd.schedules import anneal, stages
    from abkd.terms import TeacherConfidence, Term
    from abkd.trainer import DistillTrainer


_EXPORTS = {
    "abkd.config": ("DistillConfig",),
    "abkd.divergences": (
        "CLKD",
        "DIST",
        "DKD",
        "AlphaBeta",
        "Divergence",
        "ForwardKL",
        "Hellinger",
        "JensenShannon",
        "ReverseKL",
        "SkewForwardKL",
        "SkewReverseKL",
        "Standardized",
        "TotalVariation",
        "TransformedTeacher",
        "WeightedSum",
    ),
    "abkd.objective": ("Objective",),
    "abkd.ops": (
        "Averaged",
        "Dense",
        "Head",
        "ChunkPlan",
        "Projected",
        "RowLosses",
        "TopK",
        "divergence_loss",
        "linear_divergence",
    ),
    "abkd.recipe": ("Recipe",),
    "abkd.schedules": ("anneal", "stages"),
    "abkd.terms": ("Term", "TeacherConfidence"),
    "abkd.trainer": ("DistillTrainer",),
}
_HOME_OF = {name: home for home, names in _EXPORTS.items() for name in names}

__all__ = [
    "CLKD",
    "DIST",
    "DKD",
    "AlphaBeta",
    "Averaged",
    "ChunkPlan",
    "Dense",
    "DistillConfig",
    "DistillTrainer",
    "Divergence",
    "ForwardKL",
    "Head",
    "Hellinger",
    "JensenShannon",
    "Objective",
    "Projected",
    "Recipe",
    "ReverseKL",
    "RowLosses",
    "SkewForwardKL",
    "SkewReverseKL",
    "Standardized",
    "TeacherConfidence",
    "Term",
    "TopK",
    "TotalVariation",
    "TransformedTeacher",
    "WeightedSum",
    "anneal",
    "divergence_loss",
    "linear_divergence",
    "stages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'abkd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
