"""One bucket for all unknown classes gives a lower bound of a divergence, unless α+β > 1.

For an f-divergence that is the data processing inequality. For ``AlphaBeta`` write s = α+β, r = 1/s and x, y for the
vectors of p^s, q^s. Its term is g(x, y)/s² for a convex g, homogeneous of degree 1 and at least 0, and the term of a
bucket is g(|x|_r, |y|_r)/s². Let g's tangent there be u·x + v·y, which lies nowhere above g; say u >= 0 >= v (otherwise
exchange the two). For 0 < s <= 1 take w_i = (x_i/|x|_r)^(r-1) <= 1: then |x|_r = Σ w_i·x_i and, by Hölder, |y|_r >=
Σ w_i·y_i, so g(|x|_r, |y|_r) = u|x|_r + v|y|_r <= Σ w_i·(u·x_i + v·y_i) <= Σ g(x_i, y_i). For s < 0 the same with the
roles of x and y exchanged in w, and s = 0 is a limit. For s > 1 the weights are above 1.
"""

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

BOUNDED = [
    *(abkd.AlphaBeta(alpha, 1.0 - alpha) for alpha in (1.0, 0.0, 0.2, 0.5, 0.9, 1.4, 2.0, -0.7)),
    *(
        abkd.AlphaBeta(*point)
        for point in ((0.2, 0.7), (0, 0), (0.4, 0), (0, 0.4), (0.3, -0.3), (-1, 0.5), (-0.5, -0.7))
    ),
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
    """The divergence with 1, 2, … V classes known; the last one is exact."""
    known = [bucketed(Dense(teacher), k) for k in range(1, teacher.shape[-1] + 1)]
    values = [linear_divergence(Dense(student), each, divergence).divergence.item() for each in known]
    return [*values, linear_divergence(Dense(student), Dense(teacher), divergence).divergence.item()]


@settings(deadline=None, derandomize=True, max_examples=12, database=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([0.1, 1.0, 4.0]), st.sampled_from([0.1, 1.0, 4.0]))
@pytest.mark.parametrize("divergence", BOUNDED, ids=repr)
def test_they_grow_with_every_class_that_is_known(
    divergence: abkd.Divergence, seed: int, classes: int, spread_q: float, spread_p: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 1, classes, generator=draw, dtype=torch.float64)
    values = at_every_k(divergence, spread_q * student, spread_p * teacher)
    room = 1e-12 * (1.0 + max(values))
    assert all(after >= before - room for before, after in pairwise(values))
    assert math.isclose(values[-2], values[-1], rel_tol=1e-11, abs_tol=1e-13)


def test_where_the_exponents_add_up_to_more_than_1_the_bucket_may_lie_above() -> None:
    """The example in the docstring of ``TopK``."""
    p, q = torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[0.4, 0.3, 0.3]])
    values = at_every_k(abkd.AlphaBeta(1, 1), q.double().log(), p.double().log())
    assert values == pytest.approx([0.04, 0.03, 0.03, 0.03])
    assert all(said in (TopK.__doc__ or "") for said in ("(.6, .2, .2)", "(.4, .3, .3)", ".03", ".04"))


def test_a_student_beside_the_known_classes_is_seen() -> None:
    """Its mass is where the teacher has little: the tail's bucket shows it, sums over k classes do not."""
    draw = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 50, generator=draw, dtype=torch.float64)
    student = 20.0 * torch.nn.functional.one_hot(teacher.argmin(-1), 50) + 0.1 * teacher
    for divergence in (abkd.ForwardKL(), abkd.ReverseKL(), abkd.JensenShannon(), abkd.AlphaBeta(0.2, 0.7)):
        whole = linear_divergence(Dense(student), Dense(teacher), divergence).divergence
        for k in (1, 5):
            bound = linear_divergence(Dense(student), bucketed(Dense(teacher), k), divergence).divergence
            assert (bound > 0.01 * whole).all(), (divergence, k)
            assert (bound <= whole * (1 + 1e-12)).all(), (divergence, k)
