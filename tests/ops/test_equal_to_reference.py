"""``impl="chunked"`` against ``impl="reference"``: loss, per-row numbers and every gradient, to 1e-6 in float32."""

from __future__ import annotations

import pytest
import torch
from exact import assert_same
from op_parts import EVERY, FORMS, OPTIONS, SHAPES, WEIGHT, gradients, problem
from torch import Tensor

import abkd
from abkd.ops import ChunkPlan, Dense, Head, Projected, linear_divergence

AB, KL = abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL()


def case(divergence: abkd.Divergence) -> str:
    return repr(divergence)


@pytest.mark.parametrize("divergence", EVERY, ids=case)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_divergence_with_every_shape_of_head(divergence: abkd.Divergence, shape: dict[str, object]) -> None:
    one = problem(**shape)
    assert_same(one, divergence)
    assert_same(one, divergence, targets=one.targets, ce_weight=0.4, kd_weight=0.6, temperature=2.0)


@pytest.mark.parametrize("divergence", EVERY, ids=case)
@pytest.mark.parametrize("option", OPTIONS.values(), ids=list(OPTIONS))
def test_every_divergence_with_every_option(divergence: abkd.Divergence, option: dict[str, object]) -> None:
    one = problem(bias=True, spread=0.8)
    assert_same(one, divergence, **option)
    assert_same(one, divergence, targets=one.targets, **{"ce_weight": 1.0, "kd_weight": 3.0, **option})


@pytest.mark.parametrize("rows", [1, 3, 12, 13, 14, 1000])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_any_chunk_size(rows: int, weight: Tensor | None) -> None:
    one = problem(bias=True, scale=0.9)
    assert_same(one, AB, plan=ChunkPlan(rows, False), row_weight=weight, targets=one.targets, ce_weight=0.5)


def test_rows_wider_than_a_block_and_many_rows_in_one() -> None:
    # in float64, because torch's log_softmax of 70 000 float32 numbers is off by 1e-5 by itself
    for rows, classes, chunk in ((7, 70_000, 4), (3000, 50, 2900)):
        assert_same(problem(rows, classes, dtype=torch.float64), AB, plan=ChunkPlan(chunk, False))


def test_targets_alone_are_reported_and_change_nothing() -> None:
    one = problem()
    plain, without = gradients(one, AB)
    labelled, with_targets = gradients(one, AB, targets=one.targets)
    assert plain.cross_entropy is None
    expected = torch.nn.functional.cross_entropy(one.student.logits(slice(None)), one.targets, reduction="none")
    torch.testing.assert_close(labelled.cross_entropy, expected.detach())
    for name, gradient in without.items():
        torch.testing.assert_close(with_targets[name], gradient, rtol=0, atol=0)


def test_the_cross_entropy_alone_is_torch_s() -> None:
    one = problem(bias=True)
    got, given = gradients(one, KL, targets=one.targets, ce_weight=1.0, kd_weight=0.0, temperature=3.0)
    plain = one.fresh()
    loss = torch.nn.functional.cross_entropy(plain.student.logits(slice(None)), one.targets)
    loss.backward()
    torch.testing.assert_close(got.loss, loss)
    for name, leaf in plain.leaves.items():
        torch.testing.assert_close(given[name], leaf.grad, rtol=1e-5, atol=1e-6)


def test_float64_is_float64() -> None:
    one = problem(bias=True, scale=1.1, dtype=torch.float64)
    for option in OPTIONS.values():
        assert_same(one, AB, targets=one.targets, ce_weight=0.5, **option)
    assert one.solve(AB).loss.dtype == torch.float64


def test_the_loss_may_be_scaled_before_backward() -> None:
    one = problem(bias=True)
    _, plain = gradients(one, AB)
    mine = one.fresh()
    (mine.solve(AB).loss * 3.5 + 1).backward()
    for name, leaf in mine.leaves.items():
        torch.testing.assert_close(leaf.grad, 3.5 * plain[name])


def test_backward_twice_and_two_calls_add_up() -> None:
    one = problem()
    _, plain = gradients(one, AB)
    twice, accumulated = one.fresh(), one.fresh()
    loss = twice.solve(AB).loss
    loss.backward(retain_graph=True)
    loss.backward()
    for _ in range(2):
        accumulated.solve(AB).loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(twice.leaves[name].grad, 2 * gradient)
        torch.testing.assert_close(accumulated.leaves[name].grad, 2 * gradient)


def test_a_batch_split_in_parts_with_its_total_weight_gives_the_whole() -> None:
    one = problem(row_weight=WEIGHT.double(), dtype=torch.float64)
    whole, wanted = gradients(one, AB)
    parts, loss = one.fresh(), 0.0
    for rows in (slice(0, 4), slice(4, 13)):
        student, teacher = parts.student, parts.teacher
        part = linear_divergence(
            Projected(student.hidden[rows], student.head),
            Projected(teacher.hidden[rows], teacher.head),
            AB,
            row_weight=WEIGHT[rows],
            total_weight=WEIGHT.sum(),
        ).loss
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(whole.loss.item(), rel=1e-12)
    for name, gradient in wanted.items():
        torch.testing.assert_close(parts.leaves[name].grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "scale"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    one = problem(bias=True, scale=0.8)
    one.leaves[frozen].requires_grad_(False)
    assert_same(one, AB)


def test_tied_weights_get_both_gradients() -> None:
    def grad(impl: str) -> Tensor:
        torch.manual_seed(3)
        weight = torch.randn(20, 6, requires_grad=True)
        hidden = torch.tanh(weight[torch.arange(11) % 20] @ torch.randn(6, 6))
        teacher = Dense(torch.randn(11, 20))
        linear_divergence(Projected(hidden, Head(weight)), teacher, AB, impl=impl).loss.backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(grad("chunked"), grad("reference"), rtol=1e-5, atol=1e-6)


def test_a_scale_of_any_shape_of_one_number() -> None:
    for shape in ((), (1,)):
        one = problem()
        one.leaves["scale"] = torch.full(shape, 1.4, requires_grad=True)
        assert_same(one, AB)


def test_a_scale_of_zero_has_a_gradient() -> None:
    assert_same(problem(scale=0.0), AB)


def test_tensors_need_not_be_contiguous() -> None:
    one = problem(26, 74)
    base = one.fresh()
    student = Projected(base.leaves["hidden"][::2], Head(base.leaves["weight"].T.contiguous().T[::2]))
    teacher = Dense(torch.randn(74, 26).T[::2, ::2])
    results = []
    for impl in ("chunked", "reference"):
        linear_divergence(student, teacher, AB, impl=impl).loss.backward()
        results.append([base.leaves[name].grad for name in ("hidden", "weight")])
        for leaf in base.leaves.values():
            leaf.grad = None
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", FORMS)
def test_logits_may_lie_in_any_order(compiled: bool) -> None:
    one = problem(26, 8, dense_student=True, dense_teacher=True)
    _, wanted = gradients(one, AB)
    columns = one.leaves["values"].detach().T.contiguous().requires_grad_()
    plan = ChunkPlan(7, compiled)
    out = linear_divergence(Dense(columns.T), one.teacher, AB, plan=plan)
    out.loss.backward()
    assert columns.grad is not None
    torch.testing.assert_close(columns.grad.T, wanted["values"])
    with torch.no_grad():
        torch.testing.assert_close(linear_divergence(Dense(columns.T), one.teacher, AB, plan=plan).loss, out.loss)


def test_impossible_classes_on_either_and_both_sides() -> None:
    one = problem(dense_student=True, dense_teacher=True)
    with torch.no_grad():
        one.leaves["values"][:, :3] = -torch.inf
        one.teacher.values[:, 2:5] = -torch.inf
    for divergence in EVERY:
        assert_same(one, divergence) if torch.isfinite(one.solve(divergence).loss) else None
    assert torch.isfinite(one.solve(AB).loss)
    assert one.solve(KL).loss == torch.inf


def test_a_divergence_with_no_part_in_the_loss_may_be_infinite() -> None:
    one = problem(dense_student=True, dense_teacher=True)
    with torch.no_grad():
        one.leaves["values"][:, 0] = -torch.inf
    result = assert_same(one, AB, targets=one.targets.clamp(min=1), ce_weight=1.0, kd_weight=0.0)
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize("compiled", FORMS)
def test_a_cross_entropy_with_no_part_in_the_loss_may_be_infinite(compiled: bool) -> None:
    one = problem(dense_student=True, dense_teacher=True)
    with torch.no_grad():
        one.leaves["values"][0, one.targets[0]] = -torch.inf
    result = assert_same(one, AB, targets=one.targets, plan=ChunkPlan(5, compiled))
    assert result.loss.isfinite()
    assert result.cross_entropy is not None
    assert result.cross_entropy[0] == torch.inf
