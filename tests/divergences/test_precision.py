"""Precision: float64 against 50 digits, float32 against float64 on the same log-probabilities."""

from __future__ import annotations

import math
import random

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abkd.divergences import AlphaBeta, Divergence, ForwardKL, JensenShannon, SkewForwardKL, SkewReverseKL

POINTS = [
    (0.2, 0.7),
    (1.0, 0.0),
    (0.0, 1.0),
    (0.5, 0.0),
    (0.0, 0.5),
    (0.3, -0.3),
    (0.3, -0.30000001),
    (0.3, -(0.1 + 0.2)),
    (0.0, 0.0),
    (1e-5, 1e-5),
    (1 + 1e-6, 1e-6),
    (1 - 1e-6, -1e-6),
    (1e-7, 1 - 1e-7),
    (1 - 1e-7, 1e-7),
    (1.2, -0.1),
    (1.0, 1.0),
    (2.0, -1.0),
    (-1.0, 2.0),
    (1.0, -1.0),
    (-0.5, 0.2),
    (-0.7, -0.9),
    (2.0, 2.0),
]
SINGLE = 2e-6  # the documented bound


def pair(kind: str, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randn(2, classes, generator=generator, dtype=torch.float64)
    size = random.Random(seed).uniform(0, 1)
    here = torch.arange(classes) % 2 == 0
    match kind:
        case "ordinary":
            z = 3 * one, 3 * two
        case "nearly equal":
            z = 3 * one, 3 * one + 10 ** (-6 * size) * two
        case "nearly uniform":
            z = 0 * one, 10 ** (-6 * size) * two
        case "two levels":
            z = 0 * one, 10 ** (7 * size - 6) * here
        case "disjoint":
            z = one.masked_fill(here, -math.inf), two.masked_fill(~here, -math.inf)
        case "uniform, disjoint":
            z = 0 * one - 10 ** (4 * size) * here, 0 * one - 10 ** (4 * size) * ~here
        case "far":
            z = 10 ** (1 + 3 * size) * one, 10 ** (4 - 3 * size) * two
        case "agreed":
            z = 60 * size * (torch.arange(classes) == 0) + 0 * one, 60 * size * (torch.arange(classes) == 0) + two
        case _:
            raise ValueError(kind)
    return torch.log_softmax(z[0], -1), torch.log_softmax(z[1].double(), -1)


KINDS = (
    "ordinary",
    "nearly equal",
    "nearly uniform",
    "two levels",
    "disjoint",
    "uniform, disjoint",
    "far",
    "agreed",
)


@pytest.mark.parametrize(("alpha", "beta"), POINTS)
@pytest.mark.parametrize("kind", ["ordinary", "nearly equal", "two levels", "agreed"])
def test_float64_against_fifty_digits(alpha: float, beta: float, kind: str) -> None:
    for seed in range(3):
        log_p, log_q = pair(kind, 6, seed)
        log_q.requires_grad_()
        value = AlphaBeta(alpha, beta)(log_p, log_q)
        slope = torch.autograd.grad(value, log_q)[0]
        assert oracle.relative_error(value.item(), oracle.divergence(alpha, beta, log_p, log_q)) < 5e-14
        exact = oracle.student_slope(alpha, beta, log_p, log_q)
        for got, wanted in zip(slope.tolist(), exact, strict=True):
            assert oracle.relative_error(got, wanted) < 5e-14


@settings(max_examples=60)
@given(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from(["ordinary", "nearly equal"]), st.integers(0, 10_000))
def test_float64_against_fifty_digits_anywhere(alpha: float, beta: float, kind: str, seed: int) -> None:
    log_p, log_q = pair(kind, 4, seed)
    exact = oracle.divergence(alpha, beta, log_p, log_q)
    assert oracle.relative_error(AlphaBeta(alpha, beta)(log_p, log_q).item(), exact) < 1e-13


@pytest.mark.parametrize(("alpha", "beta"), POINTS)
def test_float32_against_fifty_digits(alpha: float, beta: float) -> None:
    for kind in ("ordinary", "nearly equal", "two levels"):
        log_p, log_q = (x.float() for x in pair(kind, 6, 7))
        exact = oracle.divergence(alpha, beta, log_p, log_q)
        assert oracle.relative_error(AlphaBeta(alpha, beta)(log_p, log_q).item(), exact) < SINGLE


def single_precision_error(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> float:
    """Relative, on the same float32 log-probabilities; 0 where float32 cannot hold the value (or its many parts)."""
    log_p, log_q = log_p.float(), log_q.float()
    exact = divergence(log_p.double(), log_q.double()).item()
    got = divergence(log_p, log_q).item()
    assert not math.isnan(got)
    if exact == 0 or exact == math.inf:
        return abs(got) if exact == 0 else float(got != exact)
    smallest = torch.finfo(torch.float32).tiny * len(log_p) * 100
    return abs(got - exact) / exact if smallest < exact < torch.finfo(torch.float32).max else 0.0


def _or_zero(x: float) -> float:
    return x if abs(x) > 1e-25 else 0.0  # below, float32 sees a gap of infinity as a large one


plane = st.one_of(st.floats(-1, 2).map(_or_zero), st.sampled_from([-1.0, 0.0, 1e-7, -1e-7, 0.2, 0.7, 1.0, 2.0]))


@settings(max_examples=400)
@given(plane, plane, st.sampled_from(KINDS), st.sampled_from([2, 10, 1000]), st.integers(0, 10_000))
def test_float32_over_the_plane(alpha: float, beta: float, kind: str, classes: int, seed: int) -> None:
    assert single_precision_error(AlphaBeta(alpha, beta), *pair(kind, classes, seed)) <= SINGLE


@settings(max_examples=30)
@given(plane, plane, st.sampled_from(KINDS), st.integers(0, 10_000))
def test_float32_over_the_plane_for_a_large_vocabulary(alpha: float, beta: float, kind: str, seed: int) -> None:
    assert single_precision_error(AlphaBeta(alpha, beta), *pair(kind, 152_000, seed)) <= SINGLE


@pytest.mark.parametrize("kind", KINDS)
def test_float32_in_the_far_corner_for_a_large_vocabulary(kind: str) -> None:
    """There the exponents are largest: a product rounded before ``exp`` alone would cost 4e-6."""
    for alpha, beta in ((2.0, 2.0), (1.98, 1.93), (0.7, 2.0)):
        assert single_precision_error(AlphaBeta(alpha, beta), *pair(kind, 152_000, 1)) <= SINGLE


@settings(max_examples=100)
@given(
    st.floats(1e-6, 1 - 1e-6), st.sampled_from(KINDS), st.sampled_from([2, 10, 1000, 20_000]), st.integers(0, 10_000)
)
def test_float32_of_the_mixtures(share: float, kind: str, classes: int, seed: int) -> None:
    """Also for shares close to 0 and 1. (The exponent of the mixture is rounded once more: up to 4e-6 on far tails.)"""
    rows = pair(kind, classes, seed)
    for divergence in (JensenShannon(share), SkewForwardKL(share), SkewReverseKL(share)):
        assert single_precision_error(divergence, *rows) <= 2 * SINGLE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_from_logits_no_worse_than_the_naive_form(dtype: torch.dtype, alpha: float, beta: float) -> None:
    """Both forms on float32 log-probabilities of the same rounded logits, compared with float64."""
    generator = torch.Generator().manual_seed(2)
    z_p = 3 * torch.randn(4, 5000, generator=generator)
    for z_q in (3 * torch.randn(4, 5000, generator=generator), z_p + 0.05 * torch.randn(4, 5000, generator=generator)):
        one, two = z_p.to(dtype), z_q.to(dtype)
        judge = AlphaBeta(alpha, beta)(torch.log_softmax(one.double(), -1), torch.log_softmax(two.double(), -1))
        log_p, log_q = torch.log_softmax(one.float(), -1), torch.log_softmax(two.float(), -1)
        ours = AlphaBeta(alpha, beta)(log_p, log_q)
        naive = naive_form(alpha, beta, log_p, log_q)
        assert (ours - judge).abs().max() <= (naive - judge).abs().max() + 1e-6 * judge.abs().max()


def naive_form(alpha: float, beta: float, log_p: Tensor, log_q: Tensor) -> Tensor:
    p, q, s = log_p.exp(), log_q.exp(), alpha + beta
    if beta == 0:
        return (p * (log_p - log_q)).sum(-1)
    if alpha == 0:
        return (q * (log_q - log_p)).sum(-1)
    return -(p**alpha * q**beta - alpha / s * p**s - beta / s * q**s).sum(-1) / (alpha * beta)


def test_the_smallest_difference_is_seen() -> None:
    """One unit in the last place of one log-probability still gives a positive, correct value."""
    log_p = torch.log_softmax(torch.linspace(-2, 2, 5), -1)
    log_q = log_p.clone()
    log_q[3] = torch.nextafter(log_q[3], torch.tensor(0.0))
    for divergence in (AlphaBeta(0.2, 0.7), ForwardKL(), AlphaBeta(1.2, -0.1)):
        assert divergence(log_p, log_q) > 0
        assert single_precision_error(divergence, log_p, log_q) <= SINGLE
