"""Divergences that compare the rows of a batch in the op: all rows at once, labels, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import assert_same
from op_parts import EVERY, WEIGHT, bucketed, gap, gradients, problem
from torch import Tensor

import abkd
from abkd import CLKD, DIST, DKD, Standardized, TransformedTeacher
from abkd.errors import ConfigError
from abkd.ops import Averaged, ChunkPlan, Dense, Head, TopK, divergence_loss, linear_divergence, row_metrics
from abkd.ops._row_loss_spec import RowLossSpec

TOGETHER = [DIST(), CLKD(), Standardized(DIST(0.5, 2.0))]
WHOLE = [each for each in EVERY if each.needs_full_distribution]


@pytest.mark.parametrize("divergence", TOGETHER, ids=repr)
def test_all_rows_are_seen_together_whatever_the_plan(divergence: abkd.Divergence) -> None:
    one = problem(13, bias=True)
    log_p, log_q = (torch.log_softmax(side.logits(slice(None)), -1) for side in (one.teacher, one.student))
    wanted, alone = divergence(log_p, log_q), divergence(log_p[:5], log_q[:5])
    assert gap(alone, wanted[:5]) > 1e-3
    for rows in (1, 5, 1000):
        for compiled in (False, True):
            result = assert_same(one, divergence, plan=ChunkPlan(rows, compiled))
            assert result.plan == ChunkPlan(rows, compiled)
            torch.testing.assert_close(result.divergence, wanted, check_dtype=False)
    large = problem(40, 4000, dtype=torch.float64)  # larger than the processor's cache
    assert_same(large, divergence)


@pytest.mark.parametrize("divergence", TOGETHER, ids=repr)
def test_a_row_without_weight_is_left_out_of_the_columns_too(divergence: abkd.Divergence) -> None:
    one = problem(dense_student=True, dense_teacher=True, row_weight=WEIGHT)
    got, given = gradients(one, divergence, plan=ChunkPlan(3, False))
    kept = WEIGHT.nonzero().squeeze(-1)
    values = one.leaves["values"].detach()[kept].requires_grad_()
    assert isinstance(one.teacher, Dense)
    few = linear_divergence(Dense(values), Dense(one.teacher.values[kept]), divergence, row_weight=WEIGHT[kept])
    few.loss.backward()
    torch.testing.assert_close(got.loss, few.loss)
    torch.testing.assert_close(got.divergence[kept], few.divergence)
    assert given["values"] is not None
    torch.testing.assert_close(given["values"][kept], values.grad)
    assert not given["values"][WEIGHT == 0].any()


@pytest.mark.parametrize("divergence", [*TOGETHER, DKD(), Standardized(), TransformedTeacher()], ids=repr)
def test_only_those_with_a_batch_axis_depend_on_the_split(divergence: abkd.Divergence) -> None:
    one = problem(12, dense_student=True, dense_teacher=True, dtype=torch.float64)
    z, y, targets = one.leaves["values"], one.teacher.tensors[0], one.targets
    whole = linear_divergence(Dense(z), Dense(y), divergence, targets=targets).loss
    halves = sum(
        linear_divergence(Dense(z[half]), Dense(y[half]), divergence, targets=targets[half], total_weight=12.0).loss
        for half in (slice(0, 6), slice(6, 12))
    )
    assert ((whole - halves).abs() > 1e-3) == divergence.batch_axis


def test_what_does_not_fit_is_said_and_not_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Head, "_write", full)
    with pytest.raises(torch.OutOfMemoryError, match="never split, but the logits of 13 rows do not fit") as told:
        problem(13).solve(DIST(), plan=ChunkPlan(4, False))
    assert "no room" in str(told.value.__cause__)


@pytest.mark.parametrize("divergence", WHOLE, ids=repr)
def test_half_precision_and_saturated_logits_stay_finite(divergence: abkd.Divergence) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one = problem(16, 20, dense_student=True, dense_teacher=True, dtype=dtype)
        with torch.no_grad():
            one.leaves["values"].copy_(100 * torch.sign(one.leaves["values"]))
        for teacher in (one.teacher, Dense(one.leaves["values"].detach().flip(0))):
            one.teacher = teacher
            result, given = gradients(one, divergence, targets=one.targets, ce_weight=1.0)
            assert result.loss.isfinite()
            assert given["values"] is not None
            assert given["values"].isfinite().all()


@pytest.mark.parametrize("divergence", WHOLE, ids=repr)
def test_of_a_top_k_teacher_they_are_refused_with_the_way_out(divergence: abkd.Divergence) -> None:
    one = problem(dense_teacher=True)
    assert isinstance(one.teacher, Dense)
    known = bucketed(one.teacher, 5)
    says = r"full distribution, got only its top-5 classes \(TopK\): use teacher: HiddenCache\(\)"
    for impl in ("chunked", "reference"):
        with pytest.raises(ConfigError, match=says):
            linear_divergence(one.student, known, divergence, targets=one.targets, impl=impl)
    with pytest.raises(ConfigError, match=says):
        row_metrics(one.student, known, {"d": RowLossSpec(divergence)}, one.targets)
    assert isinstance(known, TopK)
    ensemble = Averaged((one.teacher, Dense(one.teacher.values.flip(-1))))
    assert linear_divergence(one.student, ensemble, divergence, targets=one.targets).loss > 0


def test_labels_that_are_not_there() -> None:
    one = problem()
    for call in (
        lambda: linear_divergence(one.student, one.teacher, DKD()),
        lambda: row_metrics(one.student, one.teacher, {"d": RowLossSpec(Standardized(DKD()))}, None),
        lambda: divergence_loss(torch.randn(3, 4), torch.randn(3, 4), DKD()),
    ):
        with pytest.raises(ConfigError, match="needs the label of each row, got none"):
            call()
    assert linear_divergence(one.student, None, DKD(), kd_weight=0.0).loss == 0  # no row to compare with


def test_without_targets_whatever_is_not_about_them_is_worked_out() -> None:
    one = problem(13)
    wanted = {"kl": RowLossSpec(abkd.ForwardKL()), "lsd": RowLossSpec(Standardized()), "dist": RowLossSpec(DIST())}
    got = row_metrics(one.student, one.teacher, wanted, None, plan=ChunkPlan(5, False))
    labelled = row_metrics(one.student, one.teacher, wanted, one.targets)
    assert set(labelled) - set(got) == {"cross_entropy", "teacher_cross_entropy"}
    assert set(got) == {*wanted, "agreement"}
    for name, column in got.items():
        torch.testing.assert_close(column, labelled[name])
    some = row_metrics(one.student, bucketed(one.teacher, 4), {"kl": RowLossSpec(abkd.ForwardKL())}, None)
    assert set(some) == {"kl", "agreement"}
    assert set(row_metrics(one.student, None, {"kl": RowLossSpec(abkd.ForwardKL())}, None)) == {"kl"}


@pytest.mark.parametrize("divergence", TOGETHER, ids=repr)
def test_evaluation_sees_the_rows_of_a_call_together(divergence: abkd.Divergence) -> None:
    one = problem(13)
    got = row_metrics(one.student, one.teacher, {"d": RowLossSpec(divergence)}, one.targets, plan=ChunkPlan(2, False))
    torch.testing.assert_close(got["d"], one.solve(divergence).divergence)


def test_a_divergence_with_no_part_in_the_loss_does_not_spoil_the_gradient() -> None:
    one = problem(dense_student=True)
    with torch.no_grad():
        one.leaves["values"][:, 0] = -torch.inf
    options: dict[str, Any] = {"targets": one.targets.clamp(min=1), "ce_weight": 1.0, "kd_weight": 0.0}
    wanted, expected = gradients(one, abkd.AlphaBeta(), **options)
    for divergence in (DKD(), Standardized()):
        for impl in ("chunked", "reference"):
            result, given = gradients(one, divergence, impl=impl, **options)
            assert result.divergence.isinf().all()
            torch.testing.assert_close(result.loss, wanted.loss)
            torch.testing.assert_close(given["values"], expected["values"])
