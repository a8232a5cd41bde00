"""Extreme inputs: infinities, denormals, single classes, strides, half precision, huge parameters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abkd.divergences import (
    AlphaBeta,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    WeightedSum,
)

INF = math.inf
parameter = st.one_of(
    st.floats(-3, 3).filter(lambda x: x == 0 or abs(x) > 1e-25),  # below, a gap of infinity counts as a large one
    st.sampled_from([0.0, 1.0, 1e-7, -1e-7, -2.0]),
)
share = st.one_of(st.floats(0.01, 0.99), st.sampled_from([1e-6, 1 - 1e-6]))
divergences = st.one_of(
    st.builds(AlphaBeta, parameter, parameter),
    st.builds(JensenShannon, share),
    st.builds(SkewForwardKL, share),
    st.builds(SkewReverseKL, share),
    st.sampled_from([TotalVariation(), WeightedSum((0.3, ForwardKL()), (2.0, ReverseKL()))]),
)


def logits(seed: int, classes: int, exponent: float, holes: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = 10**exponent * torch.randn(classes, generator=generator, dtype=torch.float64)
    gone = torch.rand(classes, generator=generator) < holes
    gone[int(z.argmax())] = False
    return z.masked_fill(gone, -INF)


row = st.builds(
    logits,
    st.integers(0, 2**31),
    st.just(5),
    st.floats(-4, 4),
    st.sampled_from([0.0, 0.3, 0.7]),
)


@settings(max_examples=400)
@given(divergences, row, row, st.sampled_from([torch.float32, torch.float64]))
def test_never_nan_never_negative(divergence: Divergence, z_p: Tensor, z_q: Tensor, dtype: torch.dtype) -> None:
    for one, two in ((z_p, z_q), (z_p, z_p + 1e-6 * torch.nan_to_num(z_q, neginf=0.0)), (z_p, z_p)):
        log_p = torch.log_softmax(one.to(dtype), -1).requires_grad_()
        log_q = torch.log_softmax(two.to(dtype), -1).requires_grad_()
        value = divergence(log_p, log_q, teacher_grad=True)
        assert value >= 0
        for grad in torch.autograd.grad(value, (log_p, log_q)):
            assert not grad.isnan().any()
            assert grad.isfinite().all() or value > 1e20


@settings(max_examples=200)
@given(divergences, row, row)
def test_infinite_in_float64_is_infinite_in_float32(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    log_p, log_q = torch.log_softmax(z_p.float(), -1), torch.log_softmax(z_q.float(), -1)
    single, double = divergence(log_p, log_q), divergence(log_p.double(), log_q.double())
    if double.isinf():
        assert single.isinf()
    elif double < 1e37:
        assert single.isfinite()


@pytest.mark.parametrize("tiny", [1e-7, 1e-10, 1e-15, 1e-20])
def test_tiny_parameters_against_an_impossible_class(tiny: float) -> None:
    """In float32 the span of the exponents, 1e-10, times its infinite gap is beyond the largest number."""
    log_p = torch.log_softmax(torch.tensor([1.5, -INF, 0.5]), -1)
    log_q = torch.log_softmax(torch.tensor([1.5, -0.3, 0.5]), -1)
    assert AlphaBeta(0, tiny)(log_p, log_q) == AlphaBeta(tiny, 0)(log_q, log_p) == INF
    single, double = (AlphaBeta(tiny, tiny)(log_p.to(d), log_q.to(d)) for d in (torch.float32, torch.float64))
    assert single == pytest.approx(min(double.item(), torch.finfo(torch.float32).max), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("divergence", "flip"), [(ForwardKL(), False), (ReverseKL(), True), (AlphaBeta(0.4, 0), False)]
)
def test_impossible_against_underflown_is_infinite(divergence: Divergence, flip: bool, dtype: torch.dtype) -> None:
    """Probability 0 against a probability below the smallest float: tiny times infinite is infinite, not NaN."""
    tiny = torch.tensor([0.0, -14_602.0], dtype=dtype)
    never = torch.tensor([0.0, -INF], dtype=dtype)
    pair = (never, tiny) if flip else (tiny, never)
    assert divergence(*pair) == INF
    assert divergence(*reversed(pair)) == 0


@pytest.mark.parametrize(
    "divergence",
    [AlphaBeta(0.2, 0.7), AlphaBeta(0, 0), AlphaBeta(1.2, -0.1), JensenShannon(), SkewForwardKL(), TotalVariation()],
    ids=repr,
)
class TestShapes:
    def test_scalars_of_one_class(self, divergence: Divergence) -> None:
        zero = torch.zeros(1)
        assert divergence(zero, zero).shape == ()
        assert divergence(zero, zero) == 0

    def test_no_rows(self, divergence: Divergence) -> None:
        for shape in ((0, 7), (2, 0, 7), (0, 1)):
            log_q = torch.zeros(shape, requires_grad=True)
            value = divergence(torch.zeros(shape), log_q)
            assert value.shape == shape[:-1]
            value.sum().backward()
            assert log_q.grad is not None
            assert log_q.grad.shape == shape

    def test_strides(self, divergence: Divergence) -> None:
        log_p, log_q = torch.log_softmax(torch.randn(2, 3, 4, 8), -1)
        wanted = divergence(log_p, log_q)
        assert torch.allclose(divergence(log_p.mT.contiguous().mT, log_q.mT.contiguous().mT), wanted)
        assert torch.allclose(divergence(log_p.transpose(0, 1), log_q.transpose(0, 1)), wanted.T)
        expanded = log_p[:1, :1].expand(3, 4, 8)
        leaf = log_q.clone().requires_grad_()
        grad = torch.autograd.grad(divergence(expanded, leaf).sum(), leaf)[0]
        again = torch.autograd.grad(divergence(expanded.contiguous(), leaf).sum(), leaf)[0]
        assert torch.equal(grad, again)

    def test_many_rows_are_the_same_as_few(self, divergence: Divergence) -> None:
        """More than one internal block."""
        log_p, log_q = torch.log_softmax(torch.randn(2, 70, 10_000), -1)
        log_q.requires_grad_()
        value = divergence(log_p, log_q)
        weight = torch.linspace(-1, 1, 70)
        grad = torch.autograd.grad((weight * value).sum(), log_q)[0]
        for i in (0, 51, 52, 69):
            alone = log_q[i].detach().clone().requires_grad_()
            single = divergence(log_p[i], alone)
            assert torch.equal(single, value[i])
            assert torch.equal(torch.autograd.grad(single * weight[i], alone)[0], grad[i])

    def test_mixed_precision(self, divergence: Divergence) -> None:
        """The teacher's rows may have another dtype than the student's; each gradient has the dtype of its input."""
        log_p = torch.log_softmax(torch.randn(3, 6), -1)
        log_q = torch.log_softmax(torch.randn(3, 6), -1)
        for one in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            for two in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                p, q = log_p.to(one).requires_grad_(), log_q.to(two).requires_grad_()
                value = divergence(p, q, teacher_grad=True)
                assert value.dtype == (torch.float64 if torch.float64 in (one, two) else torch.float32)
                wanted = divergence(p.detach().double(), q.detach().double())
                assert torch.allclose(value.double(), wanted, rtol=1e-5)
                for leaf, grad in zip((p, q), torch.autograd.grad(value.sum(), (p, q)), strict=True):
                    assert grad.dtype == leaf.dtype
                    assert grad.isfinite().all()

    def test_without_any_gradient(self, divergence: Divergence) -> None:
        log_p, log_q = torch.log_softmax(torch.randn(2, 3, 6), -1)
        assert not divergence(log_p, log_q).requires_grad
        with torch.no_grad():
            assert not divergence(log_p, log_q.clone().requires_grad_()).requires_grad
        with torch.inference_mode():
            assert divergence(log_p, log_q).isfinite().all()
        log_p.requires_grad_()
        assert not divergence(log_p, log_q).requires_grad
        value = divergence(log_p, log_q, teacher_grad=True)
        assert torch.autograd.grad(value.sum(), log_p)[0].any()

    def test_a_second_derivative_is_refused_rather_than_wrong(self, divergence: Divergence) -> None:
        log_p, log_q = torch.log_softmax(torch.randn(2, 3, 6), -1)
        log_q = log_q.clone().requires_grad_()
        (slope,) = torch.autograd.grad(divergence(log_p, log_q).sum(), log_q, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(slope.sum(), log_q)

    def test_the_input_is_left_alone(self, divergence: Divergence) -> None:
        log_p, log_q = torch.log_softmax(torch.randn(2, 3, 6), -1)
        before = log_p.clone(), log_q.clone()
        divergence(log_p, log_q)
        assert torch.equal(log_p, before[0])
        assert torch.equal(log_q, before[1])

    def test_repeatable(self, divergence: Divergence) -> None:
        log_p, log_q = torch.log_softmax(torch.randn(2, 50, 3000), -1)
        assert torch.equal(divergence(log_p, log_q), divergence(log_p, log_q))

    def test_nan_in_one_row_stays_there(self, divergence: Divergence) -> None:
        log_p, log_q = torch.log_softmax(torch.randn(2, 3, 6), -1)
        log_q[1, 2] = math.nan
        assert divergence(log_p, log_q).isnan().tolist() == [False, True, False]


def test_denormal_probabilities() -> None:
    log_p = torch.log_softmax(torch.tensor([0.0, -95.0, -100.0, -103.0]), -1)
    log_q = torch.log_softmax(torch.tensor([0.0, -103.0, -95.0, -88.0]), -1)
    for divergence in (AlphaBeta(0.2, 0.7), ForwardKL(), ReverseKL(), AlphaBeta(0, 0), AlphaBeta(0.3, -0.3)):
        single, double = divergence(log_p, log_q), divergence(log_p.double(), log_q.double())
        assert single.item() == pytest.approx(double.item(), rel=2e-6, abs=1e-40)


@pytest.mark.parametrize("size", [10.0, 100.0, 1e4])
def test_huge_parameters_do_not_break_down(size: float) -> None:
    log_p, log_q = torch.log_softmax(torch.randn(2, 6, dtype=torch.float64), -1)
    never = log_q.clone()
    never[0] = -INF
    for alpha, beta in ((size, size), (size, -size), (-size, size), (-size, -size), (size, 0.0), (0.0, size)):
        for two in (log_q, never):
            assert AlphaBeta(alpha, beta)(log_p, two) >= 0
            assert AlphaBeta(alpha, beta)(log_p.float(), two.float()) >= 0
        assert AlphaBeta(alpha, beta)(log_p, log_p) == 0
