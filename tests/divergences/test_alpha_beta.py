"""Identities, special cases and bounds of the α-β-divergence (the numbers of its published tables)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from abkd.divergences import AlphaBeta, ForwardKL, Hellinger, ReverseKL
from abkd.errors import ConfigError

POINTS = [
    (0.2, 0.7),
    (1, 0),
    (0, 1),
    (0.5, 0.5),
    (1, 1),
    (0, 0),
    (0.3, -0.3),
    (2, -1),
    (-1, 2),
    (1.2, -0.1),
    (1.6, -0.5),
    (0, 0.4),
    (0.4, 0),
    (-0.5, 0.2),
]
number = st.one_of(st.floats(-1.5, 2.0), st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0]))
seed = st.integers(0, 2**31)


def draw(seed: int, rows: int = 3, classes: int = 7, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    log_p, log_q = torch.log_softmax(z, -1)
    return log_p, log_q


def same(got: Tensor, wanted: Tensor, rel: float = 1e-9) -> bool:
    return torch.allclose(got, wanted, rtol=rel, atol=1e-13)


@given(number, number, seed)
def test_duality(alpha: float, beta: float, seed: int) -> None:
    log_p, log_q = draw(seed)
    assert same(AlphaBeta(alpha, beta)(log_p, log_q), AlphaBeta(beta, alpha)(log_q, log_p))


@given(number, number, seed, st.floats(-2, 2))
def test_scaling_of_both_measures(alpha: float, beta: float, seed: int, log_c: float) -> None:
    """``D(c·p ‖ c·q) = c^(α+β)·D(p ‖ q)`` for measures that need not sum to 1."""
    log_p, log_q = draw(seed)
    divergence = AlphaBeta(alpha, beta)
    wanted = math.exp((alpha + beta) * log_c) * divergence(log_p, log_q)
    assert same(divergence(log_p + log_c, log_q + log_c), wanted)


@given(number, number, seed, st.floats(0.2, 1.5))
def test_zoom(alpha: float, beta: float, seed: int, zoom: float) -> None:
    """``D_(ωα,ωβ)(p ‖ q) = ω^-2 · D_(α,β)(p^ω ‖ q^ω)``."""
    log_p, log_q = draw(seed)
    wanted = AlphaBeta(alpha, beta)(zoom * log_p, zoom * log_q) / zoom**2
    assert same(AlphaBeta(zoom * alpha, zoom * beta)(log_p, log_q), wanted)


@given(number, number, seed)
def test_inversion(alpha: float, beta: float, seed: int) -> None:
    """``D_(α,β)(1/p ‖ 1/q) = D_(-α,-β)(p ‖ q)``."""
    log_p, log_q = draw(seed)
    assert same(AlphaBeta(alpha, beta)(-log_p, -log_q), AlphaBeta(-alpha, -beta)(log_p, log_q))


@given(st.floats(0.1, 2.0), st.floats(-1.0, 1.5), seed)
def test_power_identity(alpha: float, beta: float, seed: int) -> None:
    """``D_(α,β)(p ‖ q) = α^-2 · D_(1,β/α)(p^α ‖ q^α)``."""
    log_p, log_q = draw(seed)
    wanted = AlphaBeta(1, beta / alpha)(alpha * log_p, alpha * log_q) / alpha**2
    assert same(AlphaBeta(alpha, beta)(log_p, log_q), wanted)


def alpha_divergence(alpha: float, p: Tensor, q: Tensor) -> Tensor:
    return ((p**alpha * q ** (1 - alpha)).sum(-1) - 1) / (alpha * (alpha - 1))


def beta_divergence(beta: float, p: Tensor, q: Tensor) -> Tensor:
    s = 1 + beta
    return -(p * q**beta - p**s / s - beta * q**s / s).sum(-1) / beta


SPECIAL = {
    "forward KL": ((1, 0), lambda p, q: (p * (p / q).log()).sum(-1)),
    "reverse KL": ((0, 1), lambda p, q: (q * (q / p).log()).sum(-1)),
    "4 H²": ((0.5, 0.5), lambda p, q: 4 * 0.5 * ((p.sqrt() - q.sqrt()) ** 2).sum(-1)),
    "4 (1 - Bhattacharyya)": ((0.5, 0.5), lambda p, q: 4 * (1 - (p * q).sqrt().sum(-1))),
    "half squared Euclidean": ((1, 1), lambda p, q: ((p - q) ** 2).sum(-1) / 2),
    "half Pearson χ²": ((2, -1), lambda p, q: ((p - q) ** 2 / q).sum(-1) / 2),
    "half Neyman χ²": ((-1, 2), lambda p, q: ((p - q) ** 2 / p).sum(-1) / 2),
    "Itakura-Saito": ((1, -1), lambda p, q: ((q / p).log() + p / q - 1).sum(-1)),
    "half log-Euclidean": ((0, 0), lambda p, q: ((p.log() - q.log()) ** 2).sum(-1) / 2),
    "α-divergence .3": ((0.3, 0.7), lambda p, q: alpha_divergence(0.3, p, q)),
    "α-divergence -.4": ((-0.4, 1.4), lambda p, q: alpha_divergence(-0.4, p, q)),
    "β-divergence .6": ((1, 0.6), lambda p, q: beta_divergence(0.6, p, q)),
    "β-divergence -.3": ((1, -0.3), lambda p, q: beta_divergence(-0.3, p, q)),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_named_special_case(name: str) -> None:
    (alpha, beta), formula = SPECIAL[name]
    log_p, log_q = draw(11, rows=8)
    assert same(AlphaBeta(alpha, beta)(log_p, log_q), formula(log_p.exp(), log_q.exp()), 1e-11)


def test_the_named_points_are_the_plane() -> None:
    log_p, log_q = draw(12)
    for named, point in ((ForwardKL(), (1, 0)), (ReverseKL(), (0, 1)), (Hellinger(), (0.5, 0.5))):
        assert (named.alpha, named.beta) == point
        assert torch.equal(named(log_p, log_q), AlphaBeta(*point)(log_p, log_q))
        assert repr(named) == f"{type(named).__name__}()"
    assert torch.allclose(ForwardKL()(log_p, log_q), ReverseKL()(log_q, log_p))


def test_forward_kl_is_what_torch_says() -> None:
    log_p, log_q = draw(13)
    wanted = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    assert same(ForwardKL()(log_p, log_q), wanted)


@pytest.mark.parametrize(("alpha", "beta"), POINTS)
def test_logit_gradient_has_the_closed_form(alpha: float, beta: float) -> None:
    """``∂D/∂z_y = -(w_y - q_y Σ w)``, ``w = q^β (p^α - q^α)/α`` (eq. 128, 132)."""
    log_p, _ = draw(21)
    z = draw(22)[1].clone().requires_grad_()
    log_q = torch.log_softmax(z, -1)
    grad = torch.autograd.grad(AlphaBeta(alpha, beta)(log_p, log_q).sum(), z)[0]
    p, q = log_p.exp(), log_q.detach().exp()
    w = q**beta * ((p**alpha - q**alpha) / alpha if alpha else log_p - log_q.detach())
    assert same(grad, -(w - q * w.sum(-1, keepdim=True)), 1e-10)


def test_gradients_of_both_kls() -> None:
    log_p, _ = draw(23)
    z = draw(24)[1].clone().requires_grad_()
    log_q = torch.log_softmax(z, -1)
    p, q, lq = log_p.exp(), log_q.detach().exp(), log_q.detach()
    forward = torch.autograd.grad(ForwardKL()(log_p, log_q).sum(), z, retain_graph=True)[0]
    assert same(forward, q - p)
    reverse = ReverseKL()(log_p, log_q)
    grad = torch.autograd.grad(reverse.sum(), z)[0]
    assert same(grad, q * (lq - log_p - reverse.detach()[:, None]))


@given(st.floats(0.02, 2), st.floats(0.02, 2), st.integers(2, 50), seed)
def test_bounded_where_both_are_positive(alpha: float, beta: float, classes: int, seed: int) -> None:
    """``D <= max(Σ p^s, Σ q^s)/(αβ) <= C^max(0, 1-s)/(αβ)``, also for rows without a common class."""
    divergence, s = AlphaBeta(alpha, beta), alpha + beta
    log_p, log_q = draw(seed, classes=classes, scale=8)
    here = torch.arange(classes) % 2 == 0
    apart_p = torch.log_softmax(log_p.masked_fill(here, -torch.inf), -1)
    apart_q = torch.log_softmax(log_q.masked_fill(~here, -torch.inf), -1)
    for p, q in ((log_p, log_q), (apart_p, apart_q)):
        inner = torch.maximum((s * p).exp().sum(-1), (s * q).exp().sum(-1)) / (alpha * beta)
        assert (divergence(p, q) <= inner * (1 + 1e-12)).all()
        assert (inner <= classes ** max(0.0, 1 - s) / (alpha * beta) * (1 + 1e-12)).all()


@given(st.floats(0.05, 2), st.floats(0, 2), seed)
def test_the_logit_gradient_is_bounded_where_alpha_is_positive(alpha: float, beta: float, seed: int) -> None:
    classes = 20
    log_p, _ = draw(seed, classes=classes, scale=20)
    z = (20 * draw(seed + 1, classes=classes)[1]).requires_grad_()
    grad = torch.autograd.grad(AlphaBeta(alpha, beta)(log_p, torch.log_softmax(z, -1)).sum(), z)[0]
    weights = 2 * classes ** max(0.0, 1 - alpha - beta) / alpha
    assert (grad.abs().sum(-1) <= 2 * weights * (1 + 1e-12)).all()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.7, -0.2), (0.0, 0.0)])
def test_unbounded_where_the_student_forgets_and_beta_is_not_positive(alpha: float, beta: float) -> None:
    log_p = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64))
    values = []
    for gap in (10.0, 100.0, 1000.0):
        log_q = torch.log_softmax(torch.tensor([0.0, -gap], dtype=torch.float64), -1)
        values.append(AlphaBeta(alpha, beta)(log_p, log_q).item())
        mirrored = AlphaBeta(beta, alpha)(log_q, log_p).item()
        assert mirrored == pytest.approx(values[-1], rel=1e-12)
    assert values[2] > 5 * values[1] > 25 * values[0]


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (0.7, 0.2), (0.9, 0.0), (0.45, 0.45), (1.2, -0.3), (0.0, 0.9)])
def test_local_metric_depends_on_the_sum_only(alpha: float, beta: float) -> None:
    """``D ≈ ½ Σ p^(α+β-2) (p-q)²`` for small differences."""
    log_p, direction = draw(31)
    log_q = torch.log_softmax(log_p + 1e-4 * direction, -1)
    p, q = log_p.exp(), log_q.exp()
    metric = 0.5 * (p ** (alpha + beta - 2) * (p - q) ** 2).sum(-1)
    assert same(AlphaBeta(alpha, beta)(log_p, log_q), metric, 2e-3)


def test_high_temperature_scale() -> None:
    """``T²·D -> ½ C^-(α+β) Σ (z_p - z_q)²`` with centred logits as T grows."""
    classes, hot = 50, 1e4
    z = torch.randn(2, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z = z - z.mean(-1, keepdim=True)
    for alpha, beta in ((0.2, 0.7), (1.0, 0.0), (0.8, 0.3)):
        value = hot**2 * AlphaBeta(alpha, beta)(*torch.log_softmax(z / hot, -1))
        wanted = 0.5 * classes ** -(alpha + beta) * ((z[0] - z[1]) ** 2).sum()
        assert value.item() == pytest.approx(wanted.item(), rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.2", None, True])
def test_what_is_not_a_finite_number_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        AlphaBeta(bad, 0.7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="beta"):
        AlphaBeta(0.2, bad)  # type: ignore[arg-type]


def test_whole_numbers_are_numbers() -> None:
    assert AlphaBeta(1, 0) == AlphaBeta(1.0, 0.0)
    assert repr(AlphaBeta(1, 0)) == "AlphaBeta(alpha=1.0, beta=0.0)"
    assert AlphaBeta() == AlphaBeta(0.2, 0.7)


def test_one_compiled_function_serves_the_quadrant_and_another_the_rest() -> None:
    assert AlphaBeta(0.2, 0.7).kind == AlphaBeta(1, 0).kind
    assert AlphaBeta(1.2, -0.1).kind == AlphaBeta(-1, 2).kind != AlphaBeta(0.2, 0.7).kind
    assert len(AlphaBeta(1.2, -0.1).params) == len(AlphaBeta(-1, 2).params)
    assert len(AlphaBeta(0, 0).params) == len(AlphaBeta(0.2, 0.7).params)
