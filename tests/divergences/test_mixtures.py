"""Jensen-Shannon, the skew KLs, total variation and weighted sums: special values, limits, conventions."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

from abkd.divergences import (
    AlphaBeta,
    Divergence,
    ForwardKL,
    Hellinger,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    WeightedSum,
)
from abkd.errors import ConfigError

share = st.floats(0.01, 0.99)
seed = st.integers(0, 2**31)
INF = math.inf


def draw(seed: int, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_p, log_q = torch.log_softmax(2 * torch.randn(2, classes, generator=generator, dtype=torch.float64), -1)
    return log_p, log_q


def log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


DISJOINT = log(0.25, 0.75, 0.0, 0.0), log(0.0, 0.0, 0.5, 0.5)


@given(share, seed)
def test_literal_definitions(share: float, seed: int) -> None:
    log_p, log_q = draw(seed)
    p, q = log_p.exp(), log_q.exp()
    m = share * p + (1 - share) * q
    assert torch.allclose(JensenShannon(share)(log_p, log_q), share * kl(p, m) + (1 - share) * kl(q, m))
    assert torch.allclose(SkewForwardKL(share)(log_p, log_q), kl(p, m))
    assert torch.allclose(SkewReverseKL(share)(log_p, log_q), kl(q, share * q + (1 - share) * p))
    assert torch.allclose(TotalVariation()(log_p, log_q), 0.5 * (p - q).abs().sum(-1))


@given(share, seed)
def test_exchanging_teacher_and_student(share: float, seed: int) -> None:
    log_p, log_q = draw(seed)
    for one, two in (
        (JensenShannon(share), JensenShannon(1 - share)),
        (SkewForwardKL(share), SkewReverseKL(share)),
        (JensenShannon(), JensenShannon()),
        (TotalVariation(), TotalVariation()),
    ):
        assert one(log_p, log_q).item() == pytest.approx(two(log_q, log_p).item(), rel=1e-12)


def test_jensen_shannon_weight_is_the_share_of_the_teacher() -> None:
    """GKD's sign convention: small weights are (scaled) forward KL, large ones reverse KL."""
    log_p, log_q = draw(1)
    small, large = JensenShannon(1e-7), JensenShannon(1 - 1e-7)
    assert small(log_p, log_q).item() / 1e-7 == pytest.approx(ForwardKL()(log_p, log_q).item(), rel=1e-5)
    assert large(log_p, log_q).item() / 1e-7 == pytest.approx(ReverseKL()(log_p, log_q).item(), rel=1e-5)


def test_skew_limits() -> None:
    log_p, log_q = draw(2)
    assert torch.allclose(SkewForwardKL(1e-9)(log_p, log_q), ForwardKL()(log_p, log_q))
    assert torch.allclose(SkewReverseKL(1e-9)(log_p, log_q), ReverseKL()(log_p, log_q))
    # the other end: KL(p ‖ p + ε(q - p)) = ε²/2 · χ²
    pearson = 2 * AlphaBeta(-1, 2)(log_p, log_q)
    assert torch.allclose(SkewForwardKL(1 - 1e-5)(log_p, log_q) / 1e-10, 0.5 * pearson, rtol=1e-3)


def test_jensen_shannon_is_made_of_skew_kls() -> None:
    log_p, log_q = draw(3)
    for w in (0.1, 0.5, 0.8):
        parts = WeightedSum((w, SkewForwardKL(w)), (1 - w, SkewReverseKL(1 - w)))
        assert torch.allclose(JensenShannon(w)(log_p, log_q), parts(log_p, log_q))


@pytest.mark.parametrize("w", [0.1, 0.5, 0.9])
def test_values_without_a_common_class(w: float) -> None:
    entropy = -w * math.log(w) - (1 - w) * math.log(1 - w)
    assert JensenShannon(w)(*DISJOINT).item() == pytest.approx(entropy, rel=1e-14)
    assert SkewForwardKL(w)(*DISJOINT).item() == pytest.approx(-math.log(w), rel=1e-14)
    assert SkewReverseKL(w)(*DISJOINT).item() == pytest.approx(-math.log(w), rel=1e-14)
    assert TotalVariation()(*DISJOINT).item() == 1.0
    assert Hellinger()(*DISJOINT).item() == pytest.approx(4.0, rel=1e-14)
    assert ForwardKL()(*DISJOINT) == ReverseKL()(*DISJOINT) == INF


@given(share, seed, st.floats(0, 1e4))
def test_bounds(share: float, seed: int, gap: float) -> None:
    log_p, log_q = draw(seed)
    here = torch.arange(6) % 2 == 0
    log_p, log_q = torch.log_softmax(log_p - gap * here, -1), torch.log_softmax(log_q - gap * ~here, -1)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    for one, two in ((log_p, log_q), (log_p.float(), log_q.float())):
        room = 1 + 4 * torch.finfo(one.dtype).eps
        assert 0 <= TotalVariation()(one, two) <= room
        assert 0 <= JensenShannon(share)(one, two) <= entropy * room
        assert 0 <= SkewForwardKL(share)(one, two) <= -math.log(share) * room + 1e-6
        assert 0 <= SkewReverseKL(share)(one, two) <= -math.log(share) * room + 1e-6


@given(seed)
def test_pinsker_and_le_cam(seed: int) -> None:
    """Inequalities between the named divergences: ``2·TV² <= KL``, ``H² <= TV <= √2·H``."""
    log_p, log_q = draw(seed)
    tv, squared = TotalVariation()(log_p, log_q), Hellinger()(log_p, log_q) / 4
    assert 2 * tv**2 <= ForwardKL()(log_p, log_q)
    assert squared <= tv <= (2 * squared).sqrt()


@pytest.mark.parametrize("w", [0.1, 0.5, 0.93])
def test_against_mpmath(w: float) -> None:
    for z in (0.0, 1e-6, 3.0, 40.0):
        log_p, log_q = draw(5)[0], torch.log_softmax(draw(5)[0] + z * draw(6)[1], -1)
        with mpmath.workdps(60):
            rows = [(mpf(x), mpf(y)) for x, y in zip(log_p.tolist(), log_q.tolist(), strict=True)]
            total = sum(mpmath.exp(x) for x, _ in rows), sum(mpmath.exp(y) for _, y in rows)

            def skewed(s: mpf, swap: bool, rows: list = rows, total: tuple = total) -> mpf:
                """``KL(p ‖ m) - Σp + Σm``: the definition for rounded rows that do not sum exactly to 1."""
                result = mpf(0)
                for x, y in (reversed(row) if swap else row for row in rows):
                    m = mpmath.log(s * mpmath.exp(x) + (1 - s) * mpmath.exp(y))
                    result += mpmath.exp(x) * (x - m) - mpmath.exp(x) + mpmath.exp(m)
                return result

            forward, reverse = skewed(mpf(w), swap=False), skewed(mpf(w), swap=True)
            other = skewed(1 - mpf(w), swap=True)
            both = mpf(w) * forward + (1 - mpf(w)) * other
        for divergence, exact in (
            (SkewForwardKL(w), forward),
            (SkewReverseKL(w), reverse),
            (JensenShannon(w), both),
        ):
            assert divergence(log_p, log_q).item() == pytest.approx(float(exact), rel=1e-12, abs=0.0)


@pytest.mark.parametrize(
    ("make", "value", "meant"),
    [
        (JensenShannon, 0, "ForwardKL()"),
        (JensenShannon, 0.0, "ForwardKL()"),
        (JensenShannon, 1, "ReverseKL()"),
        (SkewForwardKL, 0, "ForwardKL()"),
        (SkewReverseKL, 0, "ReverseKL()"),
        (SkewForwardKL, 1, "at 1 the divergence is always 0"),
        (SkewReverseKL, 1, "at 1 the divergence is always 0"),
    ],
)
def test_the_ends_are_refused_and_what_is_meant_is_named(make: type[Divergence], value: float, meant: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(value)  # type: ignore[call-arg]
    assert meant in str(refusal.value)


@pytest.mark.parametrize("make", [JensenShannon, SkewForwardKL, SkewReverseKL])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, INF, "0.5", None, True])
def test_what_is_no_share_is_refused(make: type[Divergence], value: object) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        make(value)  # type: ignore[call-arg]


def test_gradient_of_total_variation_at_a_tie_is_zero() -> None:
    log_p, log_q = log(0.5, 0.2, 0.3), log(0.5, 0.3, 0.2).requires_grad_()
    slope = torch.autograd.grad(TotalVariation()(log_p, log_q), log_q)[0]
    assert slope.tolist() == pytest.approx([0.0, 0.15, -0.1])


def test_gradients_stay_bounded_without_a_common_class() -> None:
    log_p, log_q = DISJOINT
    log_q = log_q.clone().requires_grad_()
    for divergence in (JensenShannon(0.3), SkewForwardKL(0.1), SkewReverseKL(0.1), TotalVariation()):
        slope = torch.autograd.grad(divergence(log_p, log_q), log_q)[0]
        assert slope.abs().max() < 3


# ------------------------------------------------------------------------------------------------------ weighted sums


@given(st.floats(0.01, 50), st.floats(0.01, 50), seed)
def test_weighted_sum_is_the_weighted_sum(one: float, two: float, seed: int) -> None:
    log_p, log_q = draw(seed)
    parts = (one, AlphaBeta(0.2, 0.7)), (two, JensenShannon(0.3)), (1.0, AlphaBeta(1.3, -0.2))
    wanted = sum(weight * part(log_p, log_q) for weight, part in parts)
    assert torch.allclose(WeightedSum(*parts)(log_p, log_q), wanted, rtol=1e-13)  # type: ignore[arg-type]


def test_weighted_sum_of_slopes_and_of_teacher_slopes() -> None:
    log_p, log_q = (x.clone().requires_grad_() for x in draw(8))
    parts = (0.4, ForwardKL()), (3.0, TotalVariation()), (0.2, SkewReverseKL(0.4))
    grads = torch.autograd.grad(WeightedSum(*parts)(log_p, log_q, teacher_grad=True), (log_p, log_q))
    for index, grad in enumerate(grads):
        each = [
            w * torch.autograd.grad(part(log_p, log_q, teacher_grad=True), (log_p, log_q))[index] for w, part in parts
        ]
        assert torch.allclose(grad, torch.stack(each).sum(0), rtol=1e-13)


def test_jeffreys_is_symmetric() -> None:
    log_p, log_q = draw(9)
    jeffreys = WeightedSum((1.0, ForwardKL()), (1.0, ReverseKL()))
    assert jeffreys(log_p, log_q).item() == pytest.approx(jeffreys(log_q, log_p).item(), rel=1e-13)
    wanted = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()
    assert jeffreys(log_p, log_q).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_weighted_sums_nest() -> None:
    log_p, log_q = draw(10)
    inner = WeightedSum((0.5, ForwardKL()), (0.5, ReverseKL()))
    nested = WeightedSum((2.0, inner), (1.0, AlphaBeta(1.2, -0.1)))
    flat = WeightedSum((1.0, ForwardKL()), (1.0, ReverseKL()), (1.0, AlphaBeta(1.2, -0.1)))
    assert torch.allclose(nested(log_p, log_q), flat(log_p, log_q), rtol=1e-13)
    assert nested != flat
    assert hash(inner) == hash(WeightedSum((0.5, ForwardKL()), (0.5, ReverseKL())))


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (ForwardKL(),),
        ((0.5,),),
        ((0.5, 0.5),),
        ((0.0, ForwardKL()),),
        ((-1, ForwardKL()),),
        ((INF, ForwardKL()),),
        ((math.nan, ForwardKL()),),
        ((True, ForwardKL()),),
        (("0.5", ForwardKL()),),
        ((0.5, "ForwardKL"),),
        ((ForwardKL(), 0.5),),
    ],
)
def test_what_is_no_weighted_sum_is_refused(parts: tuple) -> None:
    with pytest.raises(ConfigError):
        WeightedSum(*parts)
