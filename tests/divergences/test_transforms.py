"""Transforms of the rows: decoupled label, z-scores, transformed teacher, and nested transforms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from abkd.divergences import (
    CLKD,
    DIST,
    DKD,
    AlphaBeta,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    Standardized,
    TotalVariation,
    TransformedTeacher,
)
from abkd.errors import ConfigError

INF = math.inf
ROWS, CLASSES = 7, 11
INNER = [ForwardKL(), ReverseKL(), AlphaBeta(0.8, 0.3), AlphaBeta(1.2, -0.1), JensenShannon(0.3), TotalVariation()]


def rows(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher's and student's logits, labels."""
    draw = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(2, ROWS, CLASSES, generator=draw, dtype=torch.float64)
    return z[0].to(dtype), z[1].to(dtype), torch.randint(CLASSES, (ROWS,), generator=draw)


def value(divergence: Divergence, z_p: Tensor, z_q: Tensor, targets: Tensor | None = None) -> Tensor:
    return divergence(torch.log_softmax(z_p, -1), torch.log_softmax(z_q, -1), targets)


def gradient(divergence: Divergence, z_p: Tensor, z_q: Tensor, targets: Tensor | None = None) -> Tensor:
    z_q = z_q.clone().requires_grad_()
    return torch.autograd.grad(value(divergence, z_p, z_q, targets).sum(), z_q)[0]


def exactly(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)


# ---- DKD


def test_the_two_parts_of_dkd_weighted_by_what_is_left_to_the_others_are_kl() -> None:
    z_p, z_q, y = rows()
    rest = 1 - torch.softmax(z_p, -1).gather(-1, y[:, None]).squeeze(-1)
    binary, others = DKD(tckd_weight=1, nckd_weight=0), DKD(tckd_weight=0, nckd_weight=1)
    exactly(value(binary, z_p, z_q, y) + rest * value(others, z_p, z_q, y), value(ForwardKL(), z_p, z_q))
    exactly(
        gradient(binary, z_p, z_q, y) + rest[:, None] * gradient(others, z_p, z_q, y), gradient(ForwardKL(), z_p, z_q)
    )


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_the_second_part_is_the_divergence_of_the_other_classes_alone(inner: Divergence) -> None:
    z_p, z_q, y = rows()
    keep = torch.arange(CLASSES) != y[:, None]
    cut_p, cut_q = (z[keep].reshape(ROWS, CLASSES - 1) for z in (z_p, z_q))
    exactly(value(DKD(inner, 0.0, 3.0), z_p, z_q, y), 3 * value(inner, cut_p, cut_q))
    grad = gradient(DKD(inner, 0.0, 3.0), z_p, z_q, y)
    exactly(grad[keep].reshape(ROWS, -1), 3 * gradient(inner, cut_p, cut_q))
    assert grad[~keep].abs().max() < 1e-14


def test_dkd_of_two_classes_and_of_one() -> None:
    z_p, z_q, y = rows()
    y = y % 2
    exactly(
        value(DKD(ReverseKL(), 2.0, 8.0), z_p[:, :2], z_q[:, :2], y), 2 * value(ForwardKL(), z_p[:, :2], z_q[:, :2])
    )
    assert not value(DKD(), z_p[:, :1], z_q[:, :1], 0 * y).any()


@pytest.mark.parametrize("inner", [ForwardKL(), AlphaBeta(0.8, 0.3), AlphaBeta(1.2, -0.1)], ids=repr)
def test_dkd_where_a_side_leaves_nothing_to_the_others_or_nothing_to_the_label(inner: Divergence) -> None:
    z_p, z_q, _ = rows()
    y = torch.zeros(ROWS, dtype=torch.int64)
    sure = torch.full_like(z_p, -INF)
    sure[:, 0] = 0.0
    never = z_p.clone()
    never[:, 0] = -INF
    for teacher, student, finite in (
        (sure, z_q, True),
        (never, z_q, True),
        (sure, sure, True),
        (never, never, True),
        (z_p, sure, False),
        (z_p, never, False),
        (sure, never, False),
        (never, sure, False),
    ):
        result, grad = value(DKD(inner), teacher, student, y), gradient(DKD(inner), teacher, student, y)
        assert bool(result.isfinite().all()) == finite
        assert not result.isnan().any()
        if finite:
            assert grad.isfinite().all()
    assert not value(DKD(inner, 0.0, 1.0), z_p, sure, y).any()  # the second part: nothing to compare
    exactly(value(DKD(inner), sure, z_q, y), -torch.log_softmax(z_q, -1)[:, 0])  # the first part alone
    assert not value(DKD(inner), never, never, y).any()


def test_dkd_is_about_labels() -> None:
    z_p, z_q, y = rows()
    for divergence in (DKD(), Standardized(DKD()), TransformedTeacher(Standardized(DKD()))):
        assert divergence.needs_targets
        with pytest.raises(ConfigError, match="needs the label of each row, got none: pass targets"):
            value(divergence, z_p, z_q)
        assert (value(divergence, z_p, z_q, y) > 0).all()
        assert not torch.equal(value(divergence, z_p, z_q, y), value(divergence, z_p, z_q, (y + 1) % CLASSES))
    assert not Standardized().needs_targets


# ---- z-scores


@pytest.mark.parametrize("inner", [*INNER, DKD(), TransformedTeacher(AlphaBeta(0.8, 0.3))], ids=repr)
def test_standardized_is_the_divergence_of_the_z_scores(inner: Divergence) -> None:
    z_p, z_q, y = rows()
    y = y if inner.needs_targets else None

    def z_scores(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7) / 3.0

    exactly(value(Standardized(inner, 3.0), z_p, z_q, y), value(inner, z_scores(z_p), z_scores(z_q), y))
    mine = z_q.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(value(inner, z_scores(z_p), z_scores(mine), y).sum(), mine)
    exactly(gradient(Standardized(inner, 3.0), z_p, z_q, y), wanted)


def test_standardized_sees_neither_scale_nor_shift() -> None:
    z_p, z_q, _ = rows()
    plain = value(Standardized(), z_p, z_q)
    for scale, shift in ((0.01, 5.0), (40.0, -300.0)):
        torch.testing.assert_close(value(Standardized(), scale * z_p, z_q + shift), plain, rtol=1e-4, atol=0)
        assert (value(Standardized(), z_p, scale * z_p + shift) < 1e-9).all()


def test_impossible_classes_have_no_part_in_the_z_scores() -> None:
    z_p, z_q, _ = rows()
    for side in (z_p, z_q):
        side[:, :3] = -INF
    exactly(value(Standardized(), z_p, z_q), value(Standardized(), z_p[:, 3:], z_q[:, 3:]))
    grad = gradient(Standardized(), z_p, z_q)
    exactly(grad[:, 3:], gradient(Standardized(), z_p[:, 3:], z_q[:, 3:]))
    assert not grad[:, :3].any()
    z_q[:, 3] = -INF  # to the student alone: what KL of it is
    assert (value(Standardized(), z_p, z_q) == INF).all()
    for inner in (AlphaBeta(0.8, 0.3), AlphaBeta(1.2, -0.1), ReverseKL(), DKD()):
        y = None if not inner.needs_targets else torch.full((ROWS,), 5)
        assert not value(Standardized(inner), z_p, z_q, y).isnan().any()
        assert gradient(Standardized(inner), z_p, z_q, y).isfinite().all()


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_a_level_row_has_a_finite_value_and_gradient(inner: Divergence) -> None:
    z_p, z_q, _ = rows()
    level = torch.zeros_like(z_q)
    for teacher, student in ((z_p, level), (level, z_q), (level, level)):
        assert value(Standardized(inner), teacher, student).isfinite().all()
        assert gradient(Standardized(inner), teacher, student).isfinite().all()
    # by definition: z-scores 0, that is a uniform distribution
    exactly(value(Standardized(inner), level, z_q), value(Standardized(inner), level + 7, z_q))


# ---- transformed teacher


@pytest.mark.parametrize("inner", [*INNER, DKD()], ids=repr)
def test_only_the_teacher_is_softened(inner: Divergence) -> None:
    z_p, z_q, y = rows()
    y = y if inner.needs_targets else None
    exactly(value(TransformedTeacher(inner, 1.0), z_p, z_q, y), value(inner, z_p, z_q, y))
    for power in (0.1, 0.5, 2.0):
        exactly(value(TransformedTeacher(inner, power), z_p, z_q, y), value(inner, power * z_p, z_q, y))
        exactly(gradient(TransformedTeacher(inner, power), z_p, z_q, y), gradient(inner, power * z_p, z_q, y))


def test_the_weight_of_a_row_is_one_for_a_sure_teacher_and_largest_for_a_level_one() -> None:
    _, z_q, _ = rows()
    plain, weighted = TransformedTeacher(power=0.25), TransformedTeacher(power=0.25, weighted=True)
    level, sure = torch.zeros_like(z_q), torch.zeros_like(z_q)
    sure[:, 1:] = -INF
    exactly(value(weighted, level, z_q), CLASSES**0.75 * value(plain, level, z_q))
    exactly(value(weighted, sure, z_q), value(plain, sure, z_q))


# ---- all of them


@pytest.mark.parametrize("divergence", [DKD(), Standardized(), TransformedTeacher(), DIST(), CLKD()], ids=repr)
def test_they_need_whole_distributions_and_float64(divergence: Divergence) -> None:
    assert divergence.needs_full_distribution
    assert divergence.needs_float64
    assert not ForwardKL().needs_full_distribution


def test_what_is_inside_tells_about_a_batch_axis() -> None:
    assert Standardized(DIST()).batch_axis
    assert TransformedTeacher(Standardized(CLKD())).batch_axis
    assert not Standardized(DKD()).batch_axis


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DKD(0.5), r"as in DKD\(AlphaBeta\(0.8, 0.3\)\), got 0.5"),
        (lambda: Standardized("KL"), "divergence must be a divergence, .*got 'KL'"),
        (lambda: DKD(tckd_weight=-1.0), "tckd_weight must be a finite number >= 0, got -1.0"),
        (lambda: DKD(nckd_weight=math.nan), "nckd_weight must be a finite number >= 0, got nan"),
        (lambda: DKD(tckd_weight=0, nckd_weight=0), "compares nothing"),
        (lambda: DKD(DKD()), "nest DKD inside it"),
        (lambda: DKD(DIST()), "nest DKD inside it"),
        (lambda: Standardized(temperature=0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: Standardized(temperature=True), "temperature must be a finite number > 0, got True"),
        (lambda: TransformedTeacher(power=-0.1), "power must be a finite number > 0"),
        (lambda: TransformedTeacher(weighted=1), "weighted must be True or False, got 1"),
        (lambda: DIST(0.0, 0.0), "inter = intra = 0 compares nothing"),
        (lambda: CLKD(classes=math.inf), "classes must be a finite number >= 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
