"""What one bucket for all unknown classes does to a divergence: for f-divergences a lower bound, elsewhere not."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_parts import bucketed

import abkd
from abkd.ops import Dense, TopK, linear_divergence

OF_RATIOS = [  # Σ q·f(p/q) for a convex f: coarser classes tell less (data processing)
    *(abkd.AlphaBeta(alpha, 1.0 - alpha) for alpha in (1.0, 0.0, 0.2, 0.5, 0.9, 1.4, 2.0, -0.7)),
    abkd.ForwardKL(),
    abkd.ReverseKL(),
    abkd.Hellinger(),
    abkd.JensenShannon(),
    abkd.JensenShannon(0.1),
    abkd.SkewForwardKL(0.2),
    abkd.SkewReverseKL(0.6),
    abkd.TotalVariation(),
    abkd.WeightedSum((0.5, abkd.ForwardKL()), (2.0, abkd.ReverseKL())),
]


def at_every_k(divergence: abkd.Divergence, student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    """The divergence with 1, 2, … V classes known, last of all the whole one."""
    known = [bucketed(Dense(teacher), k) for k in range(1, teacher.shape[-1] + 1)]
    values = [linear_divergence(Dense(student), each, divergence).divergence.item() for each in known]
    return [*values, linear_divergence(Dense(student), Dense(teacher), divergence).divergence.item()]


@settings(deadline=None, derandomize=True, max_examples=12, database=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([0.1, 1.0, 4.0]), st.sampled_from([0.1, 1.0, 4.0]))
@pytest.mark.parametrize("divergence", OF_RATIOS, ids=repr)
def test_f_divergences_grow_with_every_class_that_is_known(
    divergence: abkd.Divergence, seed: int, classes: int, spread_q: float, spread_p: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 1, classes, generator=draw, dtype=torch.float64)
    values = at_every_k(divergence, spread_q * student, spread_p * teacher)
    room = 1e-12 * (1.0 + max(values))
    assert all(after >= before - room for before, after in pairwise(values))
    assert math.isclose(values[-2], values[-1], rel_tol=1e-11, abs_tol=1e-13)


def test_where_the_exponents_add_up_to_more_than_1_the_bucket_may_lie_above() -> None:
    """The example in ``TopK``'s own words."""
    p, q = torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[0.4, 0.3, 0.3]])
    values = at_every_k(abkd.AlphaBeta(1, 1), q.double().log(), p.double().log())
    assert values == pytest.approx([0.04, 0.03, 0.03, 0.03])
    assert all(said in (TopK.__doc__ or "") for said in ("(.6, .2, .2)", "(.4, .3, .3)", ".03", ".04"))
