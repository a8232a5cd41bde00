"""Defects of the method's released code, found by running it; each is a regression test here.

The numbers in each test were computed with that code (student logits ``f``, teacher logits ``g``) and checked in high
precision. Defects in the loss of a whole batch are in ``tests/ops/test_regressions.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from abkd.divergences import AlphaBeta, Divergence, ForwardKL, Hellinger, JensenShannon, ReverseKL, SkewForwardKL

INF = float("inf")


def rows(f: list[float], g: list[float], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Teacher logits, student logits (a leaf)."""
    return torch.tensor(g, dtype=dtype), torch.tensor(f, dtype=dtype, requires_grad=True)


def loss(divergence: Divergence, g: Tensor, f: Tensor) -> Tensor:
    return divergence(torch.log_softmax(g, -1), torch.log_softmax(f, -1)).mean()


D1 = [
    ((0.5, 0.0), 1.366088, 1.363306),
    ((0.0, 0.5), 1.511828, 1.508865),
    ((0.2, 0.0), 1.980653, 1.976616),
    ((0.0, 0.7), 1.240683, 1.238262),
    ((0.5, -0.5), 2.390487, 2.385294),
    ((0.2, -0.2), 2.494966, 2.489405),
    ((-0.5, 0.5), 3.090848, 3.083646),
]


@pytest.mark.parametrize(("point", "wanted", "_released"), D1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_d1_scale_on_the_limit_lines(
    point: tuple[float, float], wanted: float, _released: float, dtype: torch.dtype
) -> None:
    g, f = rows([1, 0, -1], [0, 2, -1], dtype)
    assert loss(AlphaBeta(*point), g, f).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("point", "wanted", "released"), D1)
def test_d1_no_jump_beside_the_limit_lines(point: tuple[float, float], wanted: float, released: float) -> None:
    """The general branch of the released code, a step away, is right to about the step; ours has no branch."""
    g, f = rows([1, 0, -1], [0, 2, -1], torch.float64)
    beside = loss(AlphaBeta(point[0] + 1e-3, point[1] + 7e-4), g, f).item()
    assert beside == pytest.approx(wanted, rel=3e-3)
    assert beside == pytest.approx(released, rel=2e-4)


@pytest.mark.parametrize(
    ("point", "wanted"),
    [((0.2, 0.7), 1.01845), ((0.5, 0.5), 0.87237), ((0, 1), None), ((1, 0), None), ((0, 0), 2.348), ((1, 1), None)],
)
def test_d2_logit_minus_infinity_on_both_sides(point: tuple[float, float], wanted: float | None) -> None:
    g, f = rows([1, 0, -INF], [0, 2, -INF])
    value = loss(AlphaBeta(*point), g, f)
    grad = torch.autograd.grad(value, f)[0]
    g2, f2 = rows([1, 0], [0, 2])
    sliced = loss(AlphaBeta(*point), g2, f2)
    assert value.item() == sliced.item()
    assert grad[2] == 0
    assert torch.equal(grad[:2], torch.autograd.grad(sliced, f2)[0])
    if wanted is not None:
        assert value.item() == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize(
    ("point", "wanted"),
    [((0.2, 0.7), 0.1863691), ((1, 0), 9.6289576), ((0, 1), 0.09434428), ((1.2, -0.1), 28636.5805)],
)
def test_d3_student_probability_below_float32(point: tuple[float, float], wanted: float) -> None:
    g, f = rows([0, -1, -110], [0, -1, -2])
    value = loss(AlphaBeta(*point), g, f)
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    assert torch.autograd.grad(value, f)[0].isfinite().all()


@pytest.mark.parametrize("gap", [1.0, 87.0, 103.0, 104.0, 105.0, 200.0, 1e4])
def test_d3b_no_threshold_in_the_gap(gap: float) -> None:
    g, f = rows([0, -gap], [0, -1])
    grad = torch.autograd.grad(loss(AlphaBeta(0.2, 0.7), g, f), f)[0]
    g64, f64 = rows([0, -gap], [0, -1], torch.float64)
    wanted = torch.autograd.grad(loss(AlphaBeta(0.2, 0.7), g64, f64), f64)[0]
    assert grad.isfinite().all()
    assert torch.allclose(grad.double(), wanted, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize(
    ("point", "wanted"), [((1, 0), 0.09434428), ((0, 1), 9.6289576), ((0, 0.7), 28.203951), ((0.2, 0.7), 0.6408153)]
)
def test_d3c_teacher_probability_below_float32(point: tuple[float, float], wanted: float) -> None:
    g, f = rows([0, -1, -2], [0, -1, -110])
    value = loss(AlphaBeta(*point), g, f)
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    assert torch.autograd.grad(value, f)[0].isfinite().all()


def gaussian_logits(classes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(1, 4, classes), torch.randn(1, 4, classes)


@pytest.mark.parametrize("beta", [-(0.1 + 0.2), -0.3, -0.30000001])
def test_d5_alpha_plus_beta_almost_zero(beta: float) -> None:
    f, g = gaussian_logits(50)
    for dtype in (torch.float32, torch.float64):
        assert loss(AlphaBeta(0.3, beta), 3 * g.to(dtype), f.to(dtype)).item() == pytest.approx(823.715, rel=1e-5)


@pytest.mark.parametrize(
    ("point", "wanted"), [((1e-5, 1e-5), 558.9588), ((1e-6, 1 - 1e-6), 6.110708), ((1e-7, 1 - 1e-7), 6.110723)]
)
def test_d6_cancellation_for_tiny_parameters(point: tuple[float, float], wanted: float) -> None:
    f, g = gaussian_logits(50)
    for dtype in (torch.float32, torch.float64):
        assert loss(AlphaBeta(*point), 3 * g.to(dtype), f.to(dtype)).item() == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize(("point", "wanted"), [((0.2, 0.7), 9.12373e-5), ((0.1, 0.8), 9.12378e-5)])
def test_d6_cancellation_for_nearly_equal_rows(point: tuple[float, float], wanted: float) -> None:
    f, g = gaussian_logits(50257)
    log_p, log_q = torch.log_softmax(f + 0.01 * g, -1), torch.log_softmax(f, -1)
    divergence = AlphaBeta(*point)
    single, double = divergence(log_p, log_q), divergence(log_p.double(), log_q.double())
    assert torch.allclose(single.double(), double, rtol=1e-6, atol=0.0)
    assert single.mean().item() == pytest.approx(wanted, rel=1e-5)
    assert not divergence(log_q, log_q).any()


@pytest.mark.parametrize(
    "divergence",
    [AlphaBeta(0.2, 0.7), ForwardKL(), ReverseKL(), Hellinger(), JensenShannon(), SkewForwardKL()],
    ids=repr,
)
def test_d9_d10_zero_not_nan_and_not_the_entropy_at_equality(divergence: Divergence) -> None:
    """Adaptive weights divide 0 by 0 there; "forward KL" without its constant is the teacher's entropy, 3.4998."""
    f, _ = gaussian_logits(50)
    z = f.clone().requires_grad_()
    value = loss(divergence, f, z)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value, z)[0].any()


@pytest.mark.parametrize("point", [(0, 1), (0.5, -0.5), (1, 0), (0, 0), (1.0, 0.0), (1.3, -0.3)])
def test_no_point_of_the_plane_divides_by_zero(point: tuple[float, float]) -> None:
    """Three of the four released losses raise ZeroDivisionError on the limit lines."""
    f, g = gaussian_logits(100)
    assert loss(AlphaBeta(*point), g, f).isfinite()
