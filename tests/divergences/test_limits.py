"""Steps across the lines on which the printed definition divides by zero, in both precisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from abkd.divergences import AlphaBeta

STEPS = [10.0**-k for k in range(1, 17)] + [1e-30, 1e-100, 5e-324]
LINES = {
    "α = 0": [((0.0, beta), (1.0, 0.0)) for beta in (0.4, 1.0, 1.7, -0.6)],
    "β = 0": [((alpha, 0.0), (0.0, 1.0)) for alpha in (0.4, 1.0, 1.7, -0.6)],
    "α + β = 0": [((alpha, -alpha), (0.0, 1.0)) for alpha in (0.3, 1.0, -0.6)],
    "along α + β = 1": [((0.0, 1.0), (1.0, -1.0)), ((1.0, 0.0), (-1.0, 1.0))],
    "origin": [((0.0, 0.0), direction) for direction in ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0), (0.6, 0.8), (-0.3, 0.9))],
}
WALKS = [pytest.param(*walk, id=f"{line}: {walk[0]} by {walk[1]}") for line, walks in LINES.items() for walk in walks]


def rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z = 1.5 * torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_p, log_q = torch.log_softmax(z, -1).to(dtype)
    return log_p, log_q


def value_and_slope(divergence: AlphaBeta, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    log_q = log_q.clone().requires_grad_()
    value = divergence(log_p, log_q)
    return value.detach(), torch.autograd.grad(value.sum(), log_q)[0]


def off(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize(("start", "direction"), WALKS)
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 2e-14), (torch.float32, 2e-6)])
def test_continuous(
    start: tuple[float, float], direction: tuple[float, float], dtype: torch.dtype, noise: float
) -> None:
    """``h`` off the line the value and the slope differ by at most a constant times ``h``: no jump, no noise."""
    log_p, log_q = rows(dtype)
    on_the_line = value_and_slope(AlphaBeta(*start), log_p, log_q)
    for side in (1.0, -1.0):
        for step in STEPS:
            near = AlphaBeta(*(x + side * step * d for x, d in zip(start, direction, strict=True)))
            for got, wanted in zip(value_and_slope(near, log_p, log_q), on_the_line, strict=True):
                assert got.isfinite().all()
                assert off(got, wanted) <= 60 * step + noise


@pytest.mark.parametrize(("start", "direction"), WALKS)
def test_first_difference_is_continuous_too(start: tuple[float, float], direction: tuple[float, float]) -> None:
    """Both one-sided derivatives across the line agree: a wrong constant on the line alone would show as a kink."""
    log_p, log_q = rows(torch.float64)

    def at(step: float) -> Tensor:
        return AlphaBeta(*(x + step * d for x, d in zip(start, direction, strict=True)))(log_p, log_q)

    h, middle = 1e-4, at(0.0)
    right, left = (at(h) - middle) / h, (middle - at(-h)) / h
    assert torch.allclose(right, left, rtol=0.0, atol=20 * h * (1 + middle.abs().max().item() * 10))


@pytest.mark.parametrize(("start", "direction"), WALKS)
def test_both_precisions_agree_beside_the_line(start: tuple[float, float], direction: tuple[float, float]) -> None:
    log_p, log_q = rows(torch.float32)
    for step in (0.0, 1e-3, 1e-5, 1e-7, 1e-9, 1e-16):
        for side in (1.0, -1.0):
            near = AlphaBeta(*(x + side * step * d for x, d in zip(start, direction, strict=True)))
            assert torch.allclose(
                near(log_p, log_q).double(), near(log_p.double(), log_q.double()), rtol=1e-6, atol=0.0
            )
