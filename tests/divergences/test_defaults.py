"""What stands where nothing is said: part of every recipe that leaves a number out."""

from __future__ import annotations

import pytest

from abkd import divergences
from abkd.divergences import Divergence

DEFAULTS = [
    "AlphaBeta(alpha=0.2, beta=0.7)",
    "CLKD(instances=1.0, classes=1.0, correlation=1.0)",
    "DIST(inter=1.0, intra=1.0)",
    "DKD(divergence=ForwardKL(), tckd_weight=1.0, nckd_weight=8.0)",
    "JensenShannon(weight=0.5)",
    "SkewForwardKL(skew=0.1)",
    "SkewReverseKL(skew=0.1)",
    "Standardized(divergence=ForwardKL(), temperature=2.0)",
    "TransformedTeacher(divergence=ForwardKL(), power=0.1, weighted=False)",
]


@pytest.mark.parametrize("written", DEFAULTS)
def test_defaults_are_the_published_ones(written: str) -> None:
    kind: type[Divergence] = getattr(divergences, written.partition("(")[0])
    assert repr(kind()) == written
