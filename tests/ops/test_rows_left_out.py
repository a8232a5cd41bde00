"""Rows with weight 0: not computed, without influence; and a batch without rows."""

from __future__ import annotations

import pytest
import torch
from exact import NUMBERS, assert_same
from op_parts import EVERY, Counting, gradients, problem

import abkd
from abkd.ops import ChunkPlan

AB = abkd.AlphaBeta(0.2, 0.7)
WEIGHT = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.0, 0.0])


def test_a_row_without_weight_is_never_computed() -> None:
    for impl, seen in (("chunked", [2, 1]), ("reference", [3])):
        divergence = Counting()
        problem(7, row_weight=WEIGHT).solve(divergence, impl=impl, plan=ChunkPlan(2, False))
        assert divergence.seen == seen


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("dense", [False, True])
def test_nan_in_rows_without_weight_has_no_effect(impl: str, side: str, dense: bool) -> None:
    one = problem(7, row_weight=WEIGHT, dense_student=dense, dense_teacher=dense)
    options = {"impl": impl, "targets": one.targets, "ce_weight": 1.0, "temperature": 2.0}
    clean, wanted = gradients(one, AB, **options)
    with torch.no_grad():
        (one.student if side == "student" else one.teacher).tensors[0][WEIGHT == 0] = torch.nan
    got, given = gradients(one, AB, **options)
    assert torch.equal(got.loss, clean.loss)
    for name, gradient in wanted.items():
        assert torch.equal(given[name], gradient), name
    for name in NUMBERS:
        assert torch.equal(getattr(got, name), getattr(clean, name))
        assert getattr(got, name)[WEIGHT == 0].count_nonzero() == 0


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rows", [0, 7])
@pytest.mark.parametrize("total", [None, 0.0, 3.0])
def test_no_row_gives_zero_and_zero_gradients(impl: str, dense: bool, rows: int, total: float | None) -> None:
    shape = {"dense_student": True} if dense else {"bias": True, "scale": 2.0}
    one = problem(rows, row_weight=torch.zeros(rows), total_weight=total, **shape)
    with torch.no_grad():
        one.student.tensors[0].fill_(torch.nan)
    result, given = gradients(one, AB, impl=impl, targets=one.targets, ce_weight=0.5)
    assert result.loss == 0
    assert result.divergence.shape == (rows,)
    for name, leaf in one.leaves.items():
        assert given[name] is not None, name
        assert torch.equal(given[name], torch.zeros_like(leaf)), name


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_a_row_whose_function_weighs_it_zero_may_be_infinite(impl: str) -> None:
    one = problem(7, dense_student=True)
    with torch.no_grad():
        one.leaves["values"][2, 0] = -torch.inf
    result, given = gradients(
        one, abkd.ForwardKL(), impl=impl, row_weight=lambda facts: torch.isfinite(facts.log_q).all(-1).float()
    )
    assert torch.isfinite(result.loss)
    assert given["values"][2].count_nonzero() == 0
    assert torch.isfinite(given["values"]).all()


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"row_weight": WEIGHT}], ids=str)
def test_a_divergence_of_one_s_own_in_plain_torch_runs_through_the_op(options: dict[str, object]) -> None:

    one = problem(7, bias=True, **options)
    assert_same(one, Counting(), plan=ChunkPlan(3, False))
    assert_same(one, Counting(), plan=ChunkPlan(3, False), targets=one.targets, ce_weight=0.3)


def test_without_grad_mode_no_gradient_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from abkd.ops import _chunked

    asked: list[bool] = []
    original = _chunked.blocks

    def spy(*args, grad: bool, **kwargs):
        asked.append(grad)
        return original(*args, grad=grad, **kwargs)

    monkeypatch.setattr(_chunked, "blocks", spy)
    one = problem()
    wanted = one.solve(AB).loss
    assert asked == [True]
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            loss = one.solve(AB).loss
        assert not loss.requires_grad
        assert torch.equal(loss, wanted.detach())
    for leaf in one.leaves.values():
        leaf.requires_grad_(False)
    assert not one.solve(AB).loss.requires_grad
    assert asked == [True, False, False, False]


def test_the_teacher_never_gets_a_gradient() -> None:
    for impl in ("chunked", "reference"):
        one = problem()
        for tensor in one.teacher.tensors:
            tensor.requires_grad_()
        one.solve(AB, impl=impl).loss.backward()
        assert all(tensor.grad is None for tensor in one.teacher.tensors)


def test_every_divergence_is_zero_with_zero_gradient_where_the_rows_are_equal() -> None:
    for divergence in EVERY:
        if "zero_where_equal" in divergence.exempt:
            continue
        one = problem(dense_student=True)
        one.teacher = one.student.detach()
        result, given = gradients(one, divergence)
        assert result.loss == 0
        assert given["values"].abs().max() <= 1e-9, divergence
