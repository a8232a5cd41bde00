"""A teacher known by its top-k classes: compared with the naive form over buckets, in every form, at any k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import assert_same, exactly
from op_parts import (
    FORMS,
    OF_BUCKETS,
    OPTIONS,
    SHAPES,
    Counting,
    Problem,
    bucketed,
    gap,
    gradients,
    problem,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import abkd
from abkd.ops import Averaged, ChunkPlan, Dense, Head, Projected, TopK
from rounding import assert_rounded, once_more

AB, KL = abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL()


def with_top_k(one: Problem, k: int, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Problem:
    assert isinstance(one.teacher, Projected | Dense)
    return replace(one, teacher=bucketed(one.teacher, k, temperature, dtype))


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", OF_BUCKETS, ids=repr)
@pytest.mark.parametrize("shape", ["plain", "everything", "dense student"])
def test_every_divergence_is_that_of_the_naive_form(divergence: abkd.Divergence, shape: str, compiled: bool) -> None:
    one = problem(**SHAPES[shape])
    plan: dict[str, Any] = {"plan": ChunkPlan(5, compiled)}
    for k, temperature in ((1, 1.0), (4, 2.5), (36, 0.5), (37, 1.0)):
        mine = with_top_k(one, k, temperature)
        assert_same(mine, divergence, temperature=temperature, **plan)
        labels = {"targets": one.targets, "ce_weight": 0.4, "kd_weight": 0.6}
        assert_same(mine, divergence, temperature=temperature, **labels, **plan)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("option", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option(option: dict[str, Any], compiled: bool) -> None:
    one = problem(bias=True, spread=0.8)
    mine = with_top_k(one, 5, option.get("temperature", 1.0))
    for divergence in (AB, abkd.JensenShannon(0.3), Counting()):
        assert_same(mine, divergence, plan=ChunkPlan(5, compiled), **option)
        labels = {"targets": one.targets, "ce_weight": 1.0}
        assert_same(mine, divergence, plan=ChunkPlan(5, compiled), **{"kd_weight": 3.0, **labels, **option})


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", OF_BUCKETS, ids=repr)
def test_all_classes_known_is_the_whole_divergence(divergence: abkd.Divergence, compiled: bool) -> None:
    """For any value of log_tail, -inf or the rest from rounding; and the temperature is that of log_p."""
    one = problem(dtype=torch.float64, bias=True)
    for temperature in (1.0, 2.0):
        mine = with_top_k(one, 37, temperature)
        options: dict[str, Any] = {"temperature": temperature, "targets": one.targets, "ce_weight": 0.3}
        want, wanted = gradients(one, divergence, **options)
        for log_tail in (-torch.inf, -35.0):
            assert isinstance(mine.teacher, TopK)
            mine.teacher = replace(mine.teacher, log_tail=torch.full((13,), log_tail, dtype=torch.float64))
            got, given = gradients(mine, divergence, plan=ChunkPlan(5, compiled), **options)
            for name in ("loss", "divergence", "student_entropy", "teacher_entropy", "agreement"):
                assert gap(getattr(got, name), getattr(want, name)) <= 1e-12, name
            for name, gradient in wanted.items():
                assert gradient is not None
                assert gap(given[name], gradient) <= 1e-12, name


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("depth", [20.0, 60.0, 300.0])
def test_a_tail_that_the_student_has_nearly_emptied(depth: float, compiled: bool) -> None:
    """If 1 - Σq over the known classes is only rounding error, or 0: the tail's logarithm is a sum over the tail."""
    one = problem(6, 900, dense_student=True, dense_teacher=True)
    mine = with_top_k(one, 3)
    assert isinstance(mine.teacher, TopK)
    with torch.no_grad():
        mine.leaves["values"] -= depth
        mine.leaves["values"].scatter_add_(-1, mine.teacher.ids, torch.full((6, 3), depth))
    for divergence in (KL, AB, abkd.Hellinger(), abkd.SkewForwardKL(), abkd.AlphaBeta(0.0, 0.4)):
        for options in ({}, {"targets": one.targets, "ce_weight": 1.0}):
            exact = exactly(mine, divergence, **options)
            got, given = gradients(mine, divergence, plan=ChunkPlan(4, compiled), **options)
            torch.testing.assert_close(got.divergence.double(), exact.result.divergence, rtol=1e-5, atol=0)
            # slopes of order one, of which the normalisation leaves little; what float32 cannot hold may vanish
            share = torch.softmax(mine.leaves["values"].detach().double(), -1)
            parts = exact.gradient_sizes["values"] + (1 + depth) * share / 6 + 1e-23
            assert_rounded(given["values"], exact.gradients["values"], parts, name=f"{divergence!r}'s gradient")


@pytest.mark.parametrize("compiled", FORMS)
def test_impossible_classes_on_either_side(compiled: bool) -> None:
    one = problem(8, dense_student=True, dense_teacher=True, dtype=torch.float64)
    assert isinstance(one.teacher, Dense)
    with torch.no_grad():
        one.leaves["values"][:, :3] = -torch.inf
        one.teacher.values[:, 2:5] = -torch.inf
        one.teacher.values[0, 6:] = -torch.inf  # leaves no mass for the tail
        one.leaves["values"][1, one.teacher.values[1].argsort()[:-4]] = -torch.inf  # likewise the student's
    for divergence in (AB, abkd.JensenShannon(0.3), abkd.SkewForwardKL(), abkd.SkewReverseKL(), abkd.TotalVariation()):
        options: dict[str, Any] = {"plan": ChunkPlan(3, compiled), "temperature": 1.5}
        result = assert_same(with_top_k(one, 4, 1.5), divergence, **options)
        assert torch.isfinite(result.loss)
    assert with_top_k(one, 4).solve(KL, plan=ChunkPlan(3, compiled)).divergence[1] == torch.inf
    with torch.no_grad():
        one.leaves["values"][3, 7] = torch.nan
    assert with_top_k(one, 4).solve(AB, plan=ChunkPlan(3, compiled)).divergence.isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("divergence", OF_BUCKETS, ids=repr)
def test_nothing_is_pulled_where_the_models_are_equal(divergence: abkd.Divergence) -> None:
    one = problem(dense_student=True, dtype=torch.float64)
    one.teacher = one.student.detach()
    for temperature in (1.0, 3.0):
        result, given = gradients(with_top_k(one, 6, temperature), divergence, temperature=temperature)
        assert result.loss.abs() <= 1e-14
        q = torch.softmax(one.leaves["values"].detach() / temperature, -1)
        # at a tie rounding decides on the sign of TV's slope, and so on everything it pulls
        most = temperature * q / len(q) if isinstance(divergence, abkd.TotalVariation) else 1e-14
        assert (given["values"].abs() <= most).all()
        assert result.agreement.all()


@pytest.mark.parametrize("compiled", FORMS)
def test_a_cache_in_half_precision_and_models_in_half_precision(compiled: bool) -> None:
    """No worse than autograd over the same logits, both compared with float64."""
    for dtype in (torch.bfloat16, torch.float16):
        for shape in ({}, {"bias": True, "softcap": 5.0}, {"dense_student": True}):
            one = with_top_k(problem(333, 300, dtype=dtype, **shape), 8, dtype=torch.float16)
            options: dict[str, Any] = {"targets": one.targets, "ce_weight": 0.5}
            judge, wanted = gradients(one.fresh(torch.float64, teacher=True), AB, impl="reference", **options)
            hand, by_hand = gradients(one, AB, impl="reference", **options)
            got, given = gradients(one, AB, plan=ChunkPlan(100, compiled), **options)
            assert abs(got.loss - judge.loss) <= abs(hand.loss - judge.loss) + once_more(dtype) * judge.loss
            for name, true in wanted.items():
                assert true is not None
                errors = [(each[name].double() - true).norm() / true.norm() for each in (given, by_hand)]
                assert errors[0] <= errors[1] + once_more(dtype), name


def test_the_gradient_again_and_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    one = with_top_k(problem(bias=True, scale=0.9, dtype=torch.float64), 5)
    wanted, plain = gradients(one, AB, plan=ChunkPlan(3, False), targets=one.targets, ce_weight=0.5)
    twice = one.fresh()
    loss = twice.solve(AB, plan=ChunkPlan(3, False), targets=one.targets, ce_weight=0.5).loss
    loss.backward(retain_graph=True)
    loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(twice.leaves[name].grad, 2 * gradient)

    write = Head._write

    def limited(self: Head, hidden: Tensor, out: Tensor) -> Tensor:
        if len(hidden) > 3:
            raise torch.OutOfMemoryError("no room")
        return write(self, hidden, out)

    monkeypatch.setattr(Head, "_write", limited)
    result, given = gradients(one, AB, plan=ChunkPlan(12, False), targets=one.targets, ce_weight=0.5)
    assert result.plan == ChunkPlan(3, False)
    assert gap(result.loss, wanted.loss) <= 1e-12
    for name, gradient in plain.items():
        assert gap(given[name], gradient) <= 1e-12


def test_logits_of_the_caller_are_never_written_to() -> None:
    one = with_top_k(problem(dense_student=True), 5)
    values = one.leaves["values"]
    before, version = values.detach().clone(), values._version
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            one.solve(AB, targets=one.targets, ce_weight=1.0)
            abkd.ops.row_metrics(one.student, one.teacher, {}, one.targets)
    assert torch.equal(values, before)
    assert values._version == version


class Largest(TorchDispatchMode):
    """Records the size and the storage of every tensor that an operation returns."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.at_least, self.sizes, self.places = at_least, set(), set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.numel() >= self.at_least:
                self.sizes.add(each.numel())
                self.places.add(each.untyped_storage().data_ptr())
        return out


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("kind", ["top-k", "none", "averaged"])
def test_the_logits_of_one_chunk_are_all_that_is_ever_built(kind: str, compiled: bool) -> None:
    """With a top-k teacher, or none, they share one buffer: the gradient replaces the logits."""
    rows, classes, chunk = 320, 5000, 32
    one = problem(rows, classes)
    options: dict[str, Any] = {"targets": one.targets, "ce_weight": 0.5, "plan": ChunkPlan(chunk, compiled)}
    if kind == "top-k":
        one = with_top_k(one, 8)
    elif kind == "averaged":
        assert isinstance(one.teacher, Projected)
        one.teacher = Averaged((one.teacher, one.teacher))
    else:
        one.teacher, options["kd_weight"] = None, 0.0
    with Largest(at_least=chunk * classes) as seen:
        one.solve(AB, **options).loss.backward()
    assert max(seen.sizes) == chunk * classes
    if kind != "averaged":
        assert len(seen.places) == 1
