"""bf16, fp16, mixed dtypes and autocast: no worse than the naive form, both compared with float64."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from exact import NUMBERS
from op_parts import EVERY, Problem, gradients, problem
from torch import Tensor

import abkd
from abkd.ops import ChunkPlan, Dense, Head, Projected, divergence_loss
from rounding import once_more

AB = abkd.AlphaBeta(0.2, 0.7)
SMOOTH = [AB, abkd.ForwardKL(), abkd.ReverseKL(), abkd.JensenShannon(), abkd.SkewForwardKL()]
HALVES = [torch.bfloat16, torch.float16]


def judged(one: Problem, divergence: abkd.Divergence, **options: Any) -> dict[str, Tensor]:
    """Loss and gradients of the same numbers in float64."""
    double = one.fresh(torch.float64, teacher=True)
    result, given = gradients(double, divergence, impl="reference", **options)
    return {"loss": result.loss.detach(), **{name: value for name, value in given.items() if value is not None}}


def error(got: Tensor, judge: Tensor) -> float:
    """Root mean square, relative to that of the exact values."""
    return ((got.double() - judge).square().mean().sqrt() / judge.square().mean().sqrt()).item()


def naive(one: Problem, divergence: abkd.Divergence, *, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    """The naive form: logits, ``.float()``, log-softmax, the divergence's mean, backward."""
    mine = one.fresh()
    context = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with context, torch.no_grad():
        z_teacher = one.teacher.logits(slice(None))
    with context:
        z_student = mine.student.logits(slice(None))
    log_p, log_q = (torch.log_softmax(z.float(), -1) for z in (z_teacher, z_student))
    loss = divergence(log_p, log_q).mean()
    loss.backward()
    return {"loss": loss.detach(), **{name: leaf.grad for name, leaf in mine.leaves.items() if leaf.grad is not None}}


def ours(
    one: Problem, divergence: abkd.Divergence, *, autocast: torch.dtype | None = None, plan: ChunkPlan | None = None
) -> dict[str, Tensor]:
    context = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with context:
        result, given = gradients(one, divergence, plan=plan)
    assert result.loss.dtype == torch.float32
    assert all(getattr(result, name) is None or getattr(result, name).dtype == torch.float32 for name in NUMBERS)
    return {"loss": result.loss.detach(), **{name: value for name, value in given.items() if value is not None}}


def assert_no_worse(one: Problem, divergence: abkd.Divergence, **options: Any) -> None:
    judge, by_hand, mine = judged(one, divergence), naive(one, divergence), ours(one, divergence, **options)
    luck = max(once_more(each.dtype) for each in by_hand.values())
    for name, true in judge.items():
        assert error(mine[name], true) <= error(by_hand[name], true) + luck, name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("divergence", SMOOTH, ids=repr)
@pytest.mark.parametrize("shape", [{}, {"bias": True, "softcap": 5.0}], ids=str)
def test_half_precision_is_no_worse_than_by_hand(
    dtype: torch.dtype, divergence: abkd.Divergence, shape: dict[str, Any]
) -> None:
    one = problem(777, 300, dtype=dtype, **shape)
    assert_no_worse(one, divergence)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_gradient_over_chunks_is_no_worse_than_in_one(dtype: torch.dtype) -> None:
    assert_no_worse(problem(777, 300, dtype=dtype), AB, plan=ChunkPlan(100, False))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("divergence", SMOOTH, ids=repr)
def test_half_precision_logits_are_no_worse_than_by_hand(dtype: torch.dtype, divergence: abkd.Divergence) -> None:
    one = problem(99, 300, dtype=dtype, dense_student=True, dense_teacher=True)
    assert_no_worse(one, divergence)
    mine = one.fresh()
    loss = divergence_loss(mine.leaves["values"], one.teacher.tensors[0], divergence)
    loss.backward()
    judge, by_hand = judged(one, divergence), naive(one, divergence)
    got = {"loss": loss.detach(), "values": mine.leaves["values"].grad}
    for name, true in judge.items():
        assert error(got[name], true) <= error(by_hand[name], true) + once_more(dtype), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("divergence", SMOOTH, ids=repr)
def test_autocast_is_no_worse_than_by_hand(dtype: torch.dtype, divergence: abkd.Divergence) -> None:
    one = problem(333, 300)
    judge = judged(one, divergence)
    by_hand, mine = (
        naive(one, divergence, autocast=dtype),
        ours(one, divergence, autocast=dtype, plan=ChunkPlan(512, False)),
    )
    for name, true in judge.items():
        assert mine[name].dtype == by_hand[name].dtype
        assert error(mine[name], true) <= error(by_hand[name], true) + once_more(dtype), name


def test_autocast_multiplies_in_its_dtype_and_leaves_logits_alone() -> None:
    one, dense = problem(20, 50), problem(20, 50, dense_student=True, dense_teacher=True)
    with torch.autocast("cpu", torch.bfloat16):
        low, reference, same = one.solve(AB).loss, one.solve(AB, impl="reference").loss, dense.solve(AB).loss
    assert 0 < abs(low - one.solve(AB).loss) < 0.05
    torch.testing.assert_close(low, reference)
    torch.testing.assert_close(same, dense.solve(AB).loss, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_teacher_of_another_dtype_with_the_same_logits_is_at_distance_zero(dtype: torch.dtype) -> None:
    logits = torch.randn(30, 100).to(dtype)
    targets = torch.zeros(30, dtype=torch.int64)
    for divergence in EVERY:
        if "zero_where_equal" in divergence.exempt:
            continue
        assert divergence_loss(logits.float(), logits, divergence, targets=targets) == 0
        assert divergence_loss(logits, logits.double(), divergence, targets=targets).item() == pytest.approx(
            0, abs=1e-6
        )


def test_the_sides_may_have_different_dtypes() -> None:
    for student, teacher in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        one = problem(20, 50, dtype=student)
        one.teacher = one.teacher.to(teacher)
        mine, given = gradients(one, AB)
        wanted, expected = gradients(one, AB, impl="reference")
        torch.testing.assert_close(mine.loss, wanted.loss)
        for name, gradient in expected.items():
            torch.testing.assert_close(given[name], gradient)


def test_hidden_states_and_head_may_have_different_dtypes() -> None:
    hidden = torch.randn(20, 6, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50, 6, requires_grad=True)
    teacher = Dense(torch.randn(20, 50))
    for impl in ("chunked", "reference"):
        hidden.grad = weight.grad = None
        abkd.linear_divergence(Projected(hidden, Head(weight)), teacher, AB, impl=impl).loss.backward()
        assert hidden.grad.dtype == torch.bfloat16
        assert weight.grad.dtype == torch.float32


def test_many_chunks_are_summed_in_float32() -> None:
    """Added up in bf16, ones stop counting at 256."""
    rows = 1024
    hidden, weight = torch.ones(rows, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    teacher = Dense(torch.tensor([[0.0, -50.0]]).expand(rows, 2))
    student = Projected(hidden, Head(weight))
    abkd.linear_divergence(student, teacher, abkd.ForwardKL(), plan=ChunkPlan(1, False)).loss.backward()
    assert weight.grad.tolist() == [[-0.5], [0.5]]


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_fp16_keeps_gradients_that_a_loss_scaler_would_save(size: float) -> None:
    """A grad scaler multiplies after the op has computed its gradients: nothing may be lost before."""
    one = problem(1000, 1500, dtype=torch.float16, spread=size**0.5)
    one.teacher = Projected(one.teacher.hidden.double() / 3, one.teacher.head.to(torch.float64))
    mine = one.fresh()
    loss = mine.solve(abkd.ForwardKL(), plan=ChunkPlan(512, False)).loss
    scaled = torch.autograd.grad(loss * 1024.0, mine.leaves["weight"])[0]
    true = judged(one, abkd.ForwardKL())["weight"] * 1024
    assert error(scaled, true) <= 3e-3
