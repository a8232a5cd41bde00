"""Divergences between teacher and student rows: pure functions of log-probabilities, torch only.

``__all__`` lists what the laws in ``tests/laws`` cover, what the API page documents and what recipes can name.
"""

from abkd.divergences._alpha_beta import AlphaBeta, ForwardKL, Hellinger, ReverseKL
from abkd.divergences._batch import CLKD, DIST
from abkd.divergences._dkd import DKD
from abkd.divergences._full_distribution import FullDistribution as FullDistribution
from abkd.divergences._full_distribution import InFloat64 as InFloat64
from abkd.divergences._full_distribution import Transform as Transform
from abkd.divergences._full_distribution import check_inner as check_inner
from abkd.divergences._mixtures import JensenShannon, SkewForwardKL, SkewReverseKL
from abkd.divergences._mixtures import Mixture as Mixture
from abkd.divergences._pointwise import Divergence, Pointwise
from abkd.divergences._pointwise import Number as Number
from abkd.divergences._pointwise import check_targets as check_targets
from abkd.divergences._pointwise import working_dtype as working_dtype
from abkd.divergences._total_variation import TotalVariation
from abkd.divergences._transforms import Standardized, TransformedTeacher
from abkd.divergences._weighted_sum import WeightedSum

__all__ = [
    "CLKD",
    "DIST",
    "DKD",
    "AlphaBeta",
    "Divergence",
    "ForwardKL",
    "Hellinger",
    "JensenShannon",
    "Pointwise",
    "ReverseKL",
    "SkewForwardKL",
    "SkewReverseKL",
    "Standardized",
    "TotalVariation",
    "TransformedTeacher",
    "WeightedSum",
]
