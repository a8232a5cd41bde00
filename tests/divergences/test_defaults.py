"""Default parameters: they are part of every recipe that does not set them."""

from __future__ import annotations

import dataclasses

import pytest

from abkd import divergences, notation
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
KINDS: list[type[Divergence]] = [
    getattr(divergences, name) for name in divergences.__all__ if name not in ("Divergence", "Pointwise")
]


@pytest.mark.parametrize("written", DEFAULTS)
def test_defaults_are_the_published_ones(written: str) -> None:
    kind: type[Divergence] = getattr(divergences, written.partition("(")[0])
    assert repr(kind()) == written


@pytest.mark.parametrize("divergence", [each for kind in KINDS for each in kind.examples()], ids=repr)
def test_each_is_a_value(divergence: Divergence) -> None:
    """Compiled functions, sets and records store divergences by value."""
    again = notation.parse(repr(divergence))
    assert divergence == again
    assert hash(divergence) == hash(again)
    with pytest.raises(dataclasses.FrozenInstanceError):
        divergence.exempt = {}  # type: ignore[misc]


@pytest.mark.parametrize("name", ["ForwardKL", "ReverseKL"])
def test_a_named_point_of_the_plane_has_no_numbers(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'alpha'"):
        getattr(divergences, name)(alpha=0.5)


def test_what_the_formula_shows_is_what_is_set() -> None:
    weighted, plain = (divergences.TransformedTeacher(power=0.2, weighted=each).written() for each in (True, False))
    assert weighted.startswith("Σp^0.2·")
    assert "Σ" not in plain
