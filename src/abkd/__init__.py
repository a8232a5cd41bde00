"""abkd: knowledge distillation where every method is a configuration of one objective.

``import abkd`` and the mathematics load torch and nothing else; the Hugging Face parts load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from abkd.divergences import (
    AlphaBeta,
    Divergence,
    ForwardKL,
    Hellinger,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    WeightedSum,
)
from abkd.ops import Dense, Head, Plan, Projected, RowLosses, divergence_loss, linear_divergence
from abkd.schedules import anneal, stages

if TYPE_CHECKING:
    from abkd.config import DistillConfig
    from abkd.recipe import Recipe
    from abkd.trainer import DistillTrainer

__version__ = "0.1.0"

_LAZY = {"DistillConfig": "abkd.config", "DistillTrainer": "abkd.trainer", "Recipe": "abkd.recipe"}

__all__ = [
    "AlphaBeta",
    "anneal",
    "Dense",
    "DistillConfig",
    "DistillTrainer",
    "Divergence",
    "divergence_loss",
    "ForwardKL",
    "Head",
    "Hellinger",
    "JensenShannon",
    "linear_divergence",
    "Plan",
    "Projected",
    "Recipe",
    "ReverseKL",
    "RowLosses",
    "SkewForwardKL",
    "SkewReverseKL",
    "stages",
    "TotalVariation",
    "WeightedSum",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'abkd' has no attribute {name!r}")
