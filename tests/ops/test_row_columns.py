"""Temperature and weights of a row's own: the same as one call per row with numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import NUMBERS, assert_same
from op_parts import EVERY, FORMS, OF_BUCKETS, WEIGHT, Problem, bucketed, confidence, gap, gradients, problem, surprise
from torch import Tensor

import abkd
from abkd.divergences import Pointwise
from abkd.errors import ConfigError
from abkd.ops import Averaged, ChunkPlan, Dense, Projected, TopK, divergence_loss, linear_divergence

AB, KL = abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL()
DRAW = torch.Generator().manual_seed(3)
WARM = 0.5 + 2.5 * torch.rand(13, generator=DRAW)
HARD = torch.rand(13, generator=DRAW) * (torch.arange(13) % 4 != 1)
SOFT = 3 * torch.rand(13, generator=DRAW) * (torch.arange(13) % 5 != 2)
COLUMNS = {"temperature": WARM, "ce_weight": HARD, "kd_weight": SOFT}
SINGLE = [each for each in EVERY if not each.batch_axis]


def row_by_row(one: Problem, divergence: abkd.Divergence, **columns: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The per-row numbers, and the gradient of the logits, of one call per row with numbers for its columns."""
    assert isinstance(one.teacher, Dense)
    numbers: list[dict[str, Tensor]] = []
    leaf = one.leaves["values"].detach().clone().requires_grad_()
    for row in range(len(leaf)):
        only = slice(row, row + 1)
        result = linear_divergence(
            Dense(leaf[only]),
            Dense(one.teacher.values[only]),
            divergence,
            targets=one.targets[only],
            total_weight=float(len(leaf)),
            scale_by_temperature_squared=True,
            impl="reference",
            **{name: column[row].item() for name, column in columns.items()},
        )
        if result.loss.requires_grad:  # a row that counts
            result.loss.backward()
        numbers.append({name: getattr(result, name) for name in ("loss", *NUMBERS)})
    assert leaf.grad is not None
    return {name: torch.stack([each[name].reshape(()) for each in numbers]) for name in numbers[0]}, leaf.grad


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", SINGLE, ids=repr)
def test_columns_are_the_loop_over_rows_with_their_numbers(divergence: abkd.Divergence, compiled: bool) -> None:
    one = problem(dense_student=True, dense_teacher=True, dtype=torch.float64)
    for columns in ({"temperature": WARM}, {"kd_weight": SOFT}, COLUMNS):
        wanted, slope = row_by_row(one, divergence, **columns)
        for rows in (5, 100):  # however the rows are split
            options: dict[str, Any] = {"scale_by_temperature_squared": True, "targets": one.targets, **columns}
            got, given = gradients(one, divergence, plan=ChunkPlan(rows, compiled), **options)
            torch.testing.assert_close(got.loss, wanted["loss"].sum(), rtol=1e-11, atol=0)
            for name in NUMBERS:
                torch.testing.assert_close(getattr(got, name), wanted[name], rtol=1e-9, atol=1e-13)
            assert given["values"] is not None
            assert gap(given["values"], slope) <= 1e-13


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_columns_with_every_divergence_in_float32(divergence: abkd.Divergence, compiled: bool) -> None:
    one, plan = problem(bias=True, scale=0.8), ChunkPlan(5, compiled)
    assert_same(one, divergence, targets=one.targets, plan=plan, **COLUMNS)
    options = {"temperature": WARM, "scale_by_temperature_squared": True, "row_weight": (WEIGHT, surprise)}
    assert_same(one, divergence, plan=plan, **options)


def test_a_batch_axis_compares_rows_each_at_its_temperature() -> None:
    one = problem(dense_student=True, dense_teacher=True, dtype=torch.float64)
    assert isinstance(one.teacher, Dense)
    for divergence in (abkd.DIST(), abkd.CLKD()):
        leaf = one.leaves["values"].detach().clone().requires_grad_()
        sides = (torch.log_softmax(z / WARM.double()[:, None], -1) for z in (one.teacher.values, leaf))
        loss = (SOFT * divergence(*sides)).sum() / 13
        loss.backward()
        got, given = gradients(one, divergence, temperature=WARM, kd_weight=SOFT, plan=ChunkPlan(5, False))
        torch.testing.assert_close(got.loss, loss.detach(), rtol=1e-11, atol=0)
        assert leaf.grad is not None
        assert given["values"] is not None
        assert gap(given["values"], leaf.grad) <= 1e-13


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_constant_columns_are_the_number(divergence: abkd.Divergence, compiled: bool) -> None:
    one = problem(bias=True)
    numbers = {"temperature": 2.5, "ce_weight": 0.3, "kd_weight": 0.75}
    options = {"targets": one.targets, "scale_by_temperature_squared": True, "plan": ChunkPlan(5, compiled)}
    want, wanted = gradients(one, divergence, **options, **numbers)
    columns = {name: torch.full((13,), number, dtype=torch.float64) for name, number in numbers.items()}
    got, given = gradients(one, divergence, **options, **columns)
    torch.testing.assert_close(got.loss, want.loss)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-6)
    if compiled and isinstance(divergence, Pointwise):  # the same code for both
        assert torch.equal(got.divergence, want.divergence)
        assert all(torch.equal(given[name], gradient) for name, gradient in wanted.items() if gradient is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("divergence", [AB, abkd.JensenShannon(), abkd.Standardized()], ids=repr)
def test_in_half_precision_the_same_rows_in_float64_are_near(divergence: abkd.Divergence, dtype: torch.dtype) -> None:
    one = problem(dtype=dtype)
    columns = {name: column.to(dtype) for name, column in COLUMNS.items()}
    want, wanted = gradients(one.fresh(torch.float64, teacher=True), divergence, targets=one.targets, **columns)
    got, given = gradients(one, divergence, targets=one.targets, **columns)
    assert got.loss.dtype == torch.float32
    assert gap(got.loss, want.loss) <= 0.05
    for name, gradient in wanted.items():
        assert gradient is not None
        assert given[name] is not None
        assert given[name].dtype == dtype
        assert gap(given[name].double(), gradient) <= 0.05


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_what_has_weight_zero_does_not_count_even_if_it_is_infinite(
    divergence: abkd.Divergence, compiled: bool
) -> None:
    one = problem(4, 5, dense_student=True, dense_teacher=True)
    one.targets = torch.tensor([1, 0, 2, 3])
    assert isinstance(one.teacher, Dense)
    with torch.no_grad():
        one.leaves["values"][0, 0] = one.teacher.values[0, 1] = -torch.inf
        one.leaves["values"][1, 0] = -torch.inf  # the label of row 1
    columns = {"kd_weight": torch.tensor([0.0, 0.0, 1.0, 1.0]), "ce_weight": torch.tensor([1.0, 0.0, 0.0, 1.0])}
    for impl in ("chunked", "reference"):
        result, given = gradients(
            one, divergence, targets=one.targets, impl=impl, plan=ChunkPlan(3, compiled), **columns
        )
        assert result.loss.isfinite()
        assert given["values"] is not None
        assert given["values"].isfinite().all()
        if not divergence.batch_axis:
            hard = torch.softmax(one.leaves["values"][0].detach(), -1) - torch.eye(5)[1]
            torch.testing.assert_close(given["values"][0], hard / 4)
            assert not given["values"][1].any()


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", OF_BUCKETS, ids=repr)
def test_weights_per_row_with_a_top_k_teacher(divergence: abkd.Divergence, compiled: bool) -> None:
    one = problem(bias=True)
    assert isinstance(one.teacher, Projected)
    for k in (1, 5, 37):
        known = replace(one, teacher=bucketed(one.teacher, k, 2.0))
        plan = ChunkPlan(5, compiled)
        options: dict[str, Any] = {"targets": one.targets, "ce_weight": HARD, "kd_weight": SOFT, "temperature": 2.0}
        assert_same(known, divergence, plan=plan, **options)
    numbers = {"ce_weight": 0.3, "kd_weight": 0.75}
    columns = {name: torch.full((13,), number, dtype=torch.float64) for name, number in numbers.items()}
    options = {"targets": one.targets, "temperature": 2.0, "plan": plan}
    want, wanted = gradients(known, divergence, **options, **numbers)
    got, given = gradients(known, divergence, **options, **columns)
    torch.testing.assert_close(got.loss, want.loss)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("compiled", FORMS)
def test_an_ensemble_is_averaged_at_the_temperature_of_each_row(of: Any, compiled: bool) -> None:
    one = problem(bias=True)
    assert isinstance(one.teacher, Projected)
    one.teacher = Averaged((one.teacher, Dense(2 * torch.randn(13, 37))), of)
    for divergence in (AB, abkd.Standardized(), abkd.DIST()):
        for weight in (None, WEIGHT):
            assert_same(one, divergence, plan=ChunkPlan(5, compiled), temperature=WARM, row_weight=weight)
    alone = linear_divergence(
        Dense(one.student.logits(slice(2, 3)).detach()),
        Averaged(tuple(Dense(part.logits(slice(2, 3)).detach()) for part in one.teacher.parts), of),
        AB,
        temperature=WARM[2].item(),
    )
    got = one.solve(AB, plan=ChunkPlan(5, compiled), temperature=WARM)
    torch.testing.assert_close(got.divergence[2:3], alone.divergence)
    torch.testing.assert_close(got.teacher_entropy[2:3], alone.teacher_entropy)


@pytest.mark.parametrize("compiled", FORMS)
def test_without_a_teacher(compiled: bool) -> None:
    one = replace(problem(bias=True), teacher=None)
    options: dict[str, Any] = {"targets": one.targets, "ce_weight": HARD, "kd_weight": torch.zeros(13)}
    got = assert_same(one, KL, plan=ChunkPlan(5, compiled), temperature=WARM, **options)
    q = torch.softmax(one.student.logits(slice(None)).detach() / WARM[:, None], -1)
    torch.testing.assert_close(got.student_entropy, -(q * q.log()).sum(-1))


@pytest.mark.parametrize("compiled", FORMS)
def test_with_a_share_and_a_function_and_a_second_backward(compiled: bool) -> None:
    one = problem(bias=True)
    share, plan = torch.rand(13), ChunkPlan(5, compiled)
    for divergence in (abkd.JensenShannon(), abkd.SkewReverseKL()):
        assert_same(one, divergence, plan=plan, teacher_share=share, temperature=WARM, kd_weight=SOFT)
        assert_same(one, divergence, plan=plan, teacher_share=share, temperature=WARM, row_weight=confidence)
    _, once = gradients(one, AB, temperature=WARM, plan=plan)
    twice = one.fresh()
    loss = twice.solve(AB, temperature=WARM, plan=plan).loss
    loss.backward(retain_graph=True)
    loss.backward()
    for name, gradient in once.items():
        assert gradient is not None
        torch.testing.assert_close(twice.leaves[name].grad, 2 * gradient)


def test_columns_are_constants_and_of_rows_without_weight_may_hold_anything() -> None:
    one = problem()
    columns = {name: column.clone().requires_grad_() for name, column in COLUMNS.items()}
    one.solve(AB, targets=one.targets, **columns).loss.backward()
    assert all(column.grad is None for column in columns.values())
    kept, _ = gradients(one, AB, row_weight=WEIGHT, temperature=WARM)
    odd = torch.where(WEIGHT == 0, torch.nan, WARM)
    got, _ = gradients(one, AB, row_weight=WEIGHT, temperature=odd)
    assert torch.equal(got.loss, kept.loss)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"temperature": torch.ones(12)}, r"temperature must be one number, or \[13\] .*, got a tensor \[12\]"),
        ({"temperature": torch.tensor(2.0)}, r"temperature must be one number, or \[13\] .*, got a tensor \[\]"),
        ({"temperature": WARM - WARM[3]}, r"temperature must be a finite number > 0 in every row, got -?\S+ in row \d"),
        ({"temperature": WARM / 0}, "temperature must be a finite number > 0 in every row, got inf in row 0"),
        ({"kd_weight": torch.full((13, 1), 1.0)}, r"kd_weight must be one number, or \[13\]"),
        ({"kd_weight": -SOFT}, "kd_weight must be a finite number >= 0 in every row, got -"),
        ({"ce_weight": HARD * torch.nan}, "ce_weight must be a finite number >= 0 in every row, got nan in row 0"),
    ],
)
def test_columns_that_cannot_be_meant(columns: dict[str, Tensor], says: str) -> None:
    one = problem()
    with pytest.raises(ConfigError, match=says):
        one.solve(AB, targets=one.targets, **columns)


def test_what_a_column_needs() -> None:
    one = problem()
    assert isinstance(one.teacher, Projected)
    with pytest.raises(ConfigError, match=r"ce_weight=a tensor \[13\] needs targets"):
        one.solve(AB, ce_weight=HARD)
    with pytest.raises(ConfigError, match=r"kd_weight=a tensor \[13\] needs a teacher"):
        replace(one, teacher=None).solve(AB, kd_weight=SOFT)
    known = bucketed(one.teacher, 5)
    assert isinstance(known, TopK)
    for impl in ("chunked", "reference"):
        with pytest.raises(ConfigError, match=r"top-5 classes \(TopK\).*: use teacher: HiddenCache\(\)"):
            replace(one, teacher=known).solve(AB, temperature=WARM, impl=impl)


@pytest.mark.parametrize("squared", [False, True])
def test_the_plain_loss_takes_a_temperature_per_row(squared: bool) -> None:
    z, y, mask = torch.randn(3, 4, 11), torch.randn(3, 4, 11), torch.rand(3, 4) > 0.3
    warm = WARM[:12].reshape(3, 4)
    rows = [
        divergence_loss(a, b, AB, temperature=t.item(), scale_by_temperature_squared=squared)
        for a, b, t in zip(z.reshape(-1, 11), y.reshape(-1, 11), warm.reshape(-1), strict=True)
    ]
    wanted = torch.stack(rows).reshape(3, 4) * mask
    options: dict[str, Any] = {"temperature": warm, "mask": mask, "scale_by_temperature_squared": squared}
    torch.testing.assert_close(divergence_loss(z, y, AB, reduction="none", **options), wanted)
    torch.testing.assert_close(divergence_loss(z, y, AB, reduction="sum", **options), wanted.sum())
    torch.testing.assert_close(divergence_loss(z, y, AB, **options), wanted.sum() / mask.sum())
    with pytest.raises(ConfigError, match=r"temperature must be one number, or \(3, 4\)"):
        divergence_loss(z, y, AB, temperature=WARM)
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        divergence_loss(z, y, AB, temperature=0 * warm, reduction="none")
