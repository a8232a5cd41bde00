"""The one identity that the implementation evaluates, against the printed definition in all of its five cases."""

from __future__ import annotations

import mpmath
import oracle
import pytest
import torch
from mpmath import mpf

from abkd.divergences._exponential import exponent_parts, mean, mixture, power, second_difference

CASES = [(0.2, 0.7), (1.2, -0.1), (0.4, 0.0), (0.0, 0.7), (0.3, -0.3), (0.0, 0.0)]


def row(*log_p: float) -> torch.Tensor:
    return torch.tensor(log_p, dtype=torch.float64)


ROWS = [(-0.3, -2.0), (-4.0, -0.5), (-1.0, -1.0 - 1e-9)]


@pytest.mark.parametrize(("alpha", "beta"), CASES)
@pytest.mark.parametrize(("lp", "lq"), ROWS)
def test_the_definition_is_a_second_divided_difference(alpha: float, beta: float, lp: float, lq: float) -> None:
    a, b, x, y = map(mpf, (alpha, beta, lp, lq))
    with mpmath.workdps(30):
        identity = (x - y) ** 2 * oracle.divided_difference((a + b) * x, (a + b) * y, a * x + b * y)
    printed = oracle.divergence(alpha, beta, row(lp), row(lq))
    assert oracle.relative_error(float(identity), printed) < 1e-14


@pytest.mark.parametrize(("alpha", "beta"), CASES)
@pytest.mark.parametrize(("lp", "lq"), ROWS)
def test_the_slope_is_a_first_divided_difference(alpha: float, beta: float, lp: float, lq: float) -> None:
    a, b, x, y = map(mpf, (alpha, beta, lp, lq))
    with mpmath.workdps(30):
        identity = -(x - y) * oracle.divided_difference((a + b) * y, a * x + b * y)
    printed = oracle.student_slope(alpha, beta, row(lp), row(lq))
    assert oracle.relative_error(float(identity), printed[0]) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_difference_for_nodes_near_far_and_equal(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    sizes = [0.0, 1e-12, 1e-7, 1e-3, 0.2, 0.249, 0.251, 1.0, 8.0, 90.0, 1e4]
    for near in sizes:
        for far in sizes:
            for gap in (1e-9, 1e-3, 0.7, 1.0, 3.0, 1e4):
                gap_, near_, far_ = (torch.tensor(x, dtype=dtype) for x in (gap, near, far))
                x, y = -near_ * gap_, -far_ * gap_
                inverse = 1.0 / (near + far) if near + far else 0.0
                got = second_difference(gap_, x, x + y, mean(x), torch.exp(x) * mean(y), inverse).item()
                with mpmath.workdps(60):
                    g, u, w = mpf(gap_.item()), mpf(near_.item()), mpf(far_.item())
                    u, v = u * g, (u + w) * g
                    exact = g**2 * _second(u, v)
                assert oracle.relative_error(got, exact) < 16 * eps, (gap, near, far)


def _second(u: mpf, v: mpf) -> mpf:
    """``exp[0, -u, -v]``."""
    if v == 0:
        return mpf(1) / 2
    if u == 0:
        return (v - 1 + mpmath.exp(-v)) / v**2
    if u == v:
        return (1 - mpmath.exp(-v) * (1 + v)) / v**2
    return ((1 - mpmath.exp(-u)) / u - (1 - mpmath.exp(-v)) / v) / (v - u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean(dtype: torch.dtype) -> None:
    sizes = torch.cat([torch.zeros(1), torch.logspace(-38, 38, 2000), torch.tensor([torch.inf])]).to(dtype)
    got = mean(-sizes)
    assert got[0] == 1
    assert got[-1] == 0
    with mpmath.workdps(60):
        for u, value in zip(sizes[1:-1:50].tolist(), got[1:-1:50].tolist(), strict=True):
            exact = -mpmath.expm1(-mpf(u)) / mpf(u)
            assert oracle.relative_error(value, exact) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("s", [0.0, 1e-9, 0.1, 0.35, 0.9, 1.0, 1.7, 3.999, 4.0, 6.0])
def test_power_is_not_hurt_by_the_rounding_of_its_exponent(s: float) -> None:
    log_x = -torch.logspace(-6, 4, 20_000)
    got, exact = power(log_x, exponent_parts(s)).double(), torch.exp(s * log_x.double())
    held = exact > 1.2e-38
    assert ((got - exact).abs() / exact)[held].max() < 3.5e-7


@pytest.mark.parametrize("s", [0.0, 1e-30, 0.2, 1 / 3, 0.9, 1.0, 3.7])
def test_exponent_parts_add_up(s: float) -> None:
    coarse, rest, grid = exponent_parts(s)
    assert coarse + rest == s
    assert 0 <= rest <= 2**-11 * s
    assert float(torch.tensor(coarse)) == coarse
    assert grid > 0


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_against_mpmath(share: float, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for lp in (-1e-3, -0.7, -3.0, -50.0):
        for gap in (0.0, 1e-6, 1e-2, 0.9, 1.1, 20.0, 29.0, 31.0, 1e3):
            for x, y in ((lp, lp - gap), (lp - gap, lp)):
                p, q = torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)
                log_m, from_p, from_q = mixture(p, q, share, 1 - share)
                with mpmath.workdps(50):
                    lp_, lq_ = mpf(p.item()), mpf(q.item())
                    rest = mpf(1 - share)
                    m = mpmath.log(mpf(share) * mpmath.exp(lp_) + rest * mpmath.exp(lq_))
                    assert abs(log_m.item() - m) < 4 * eps * abs(m) + 1e-16
                    for got, exact in ((from_p, lp_ - m), (from_q, lq_ - m)):
                        assert abs(got.item() - exact) < 8 * eps * abs(exact) + 1e-16, (x, y)
