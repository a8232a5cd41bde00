"""The arithmetic under torch.compile: code generators replace functions by faster, less exact ones.

(torch's for CPUs writes ``exp(x) - 1`` for ``expm1``: without care reverse KL would have no gradient at all.)
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from abkd.divergences import AlphaBeta, ForwardKL, JensenShannon, Pointwise, ReverseKL, TotalVariation
from abkd.divergences._exponential import exponent_parts, mean, power
from abkd.ops._compilers import compiler_missing

pytestmark = [
    pytest.mark.skipif(compiler_missing(torch.device("cpu")) is not None, reason="nothing to compile with here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it loads its compiler
    pytest.mark.skipif(
        os.environ.get("ATEN_CPU_CAPABILITY") == "default",
        reason="torch's compiler then writes code with vectors that it does not declare",
    ),
]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.long
def test_small_numbers_survive_compilation() -> None:
    def decay_and_power(u: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
        return mean(-u), power(-u, parts.unbind())

    u = torch.cat([torch.zeros(1), torch.logspace(-38, 2, 5000)])
    s = 1.7
    decay, powers = torch.compile(decay_and_power)(u, torch.tensor(exponent_parts(s)))
    exact = torch.where(u == 0, 1.0, -torch.expm1(-u.double()) / u.double())
    assert ((decay - exact) / exact).abs().max() < 5e-7
    wanted = torch.exp(-s * u.double())
    held = wanted > 1.2e-38
    assert ((powers - wanted) / wanted)[held].abs().max() < 4e-7


def rows(kind: str) -> tuple[Tensor, Tensor]:
    z = 3 * torch.randn(4, 5000)
    other = {"ordinary": torch.randn(4, 5000), "near": z + 1e-4 * torch.randn(4, 5000), "agreed": z.clone()}[kind]
    if kind == "agreed":
        z[:, 0] = other[:, 0] = 20.0
        other[:, 1:] += 0.5 * torch.randn(4, 4999)
    log_p, log_q = torch.log_softmax(z, -1), torch.log_softmax(other, -1)
    log_p[:, :100] = -torch.inf
    log_q[:, :100] = -torch.inf
    return log_p, log_q


def compiled_terms(divergence: Pointwise) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def value_and_slope(log_p: Tensor, log_q: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        term, slope = divergence.value_and_slope(log_p, log_q, params.unbind())
        return term.sum(-1), slope

    return torch.compile(value_and_slope)


def check(divergence: Pointwise, compiled: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    for kind in ("ordinary", "near", "agreed"):
        log_p, log_q = rows(kind)
        value, slope = compiled(log_p, log_q, torch.tensor(divergence.params))
        term, exact = divergence.value_and_slope(log_p.double(), log_q.double(), divergence.params)
        assert torch.allclose(value.double(), term.sum(-1), rtol=3e-6, atol=1e-33), (divergence, kind)
        assert (slope - exact).abs().max() <= 2e-5 * exact.abs().max(), (divergence, kind)


def test_the_quadrant_in_one_compiled_function() -> None:
    compiled = compiled_terms(AlphaBeta())
    for divergence in (ForwardKL(), ReverseKL(), AlphaBeta(0.2, 0.7), AlphaBeta(0, 0), AlphaBeta(2, 2)):
        check(divergence, compiled)


@pytest.mark.long
@pytest.mark.parametrize("divergence", [JensenShannon(0.3), TotalVariation()], ids=repr)
def test_others(divergence: Pointwise) -> None:
    check(divergence, compiled_terms(divergence))
