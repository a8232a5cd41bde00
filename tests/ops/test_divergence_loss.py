"""The plain loss on logits ``[..., V]``."""

from __future__ import annotations

import pytest
import torch
from op_parts import EVERY
from torch import Tensor

import abkd
from abkd.errors import ConfigError
from abkd.ops import Dense, divergence_loss, linear_divergence

AB = abkd.AlphaBeta(0.2, 0.7)
MASK = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]])


def logits(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, requires_grad=True), torch.randn(*shape)


def labels(divergence: abkd.Divergence, z: Tensor) -> Tensor | None:
    """Labels, if the divergence needs them."""
    return z.argmin(-1) if divergence.needs_targets else None


def by_hand(z_student: Tensor, z_teacher: Tensor, divergence: abkd.Divergence, temperature: float = 1.0) -> Tensor:
    log_p, log_q = (torch.log_softmax(z / temperature, -1) for z in (z_teacher, z_student))
    return divergence(log_p, log_q, labels(divergence, z_teacher))


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 4, 7), (2, 3, 2, 7)], ids=str)
def test_reductions_of_any_shape_are_those_by_hand(divergence: abkd.Divergence, shape: tuple[int, ...]) -> None:
    student, teacher = logits(*shape)
    row = by_hand(student, teacher, divergence, 2.0)
    for reduction, wanted in (("none", row), ("sum", row.sum()), ("mean", row.mean())):
        targets = labels(divergence, teacher)
        got = divergence_loss(student, teacher, divergence, temperature=2.0, targets=targets, reduction=reduction)
        torch.testing.assert_close(got, wanted)
        (gradient,) = torch.autograd.grad(got.sum(), student)
        (expected,) = torch.autograd.grad(wanted.sum(), student, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_a_mask_of_any_type_leaves_rows_out(dtype: torch.dtype) -> None:
    student, teacher = logits(3, 4, 7)
    row, kept = by_hand(student, teacher, AB), MASK.bool()
    for reduction, wanted in (("none", row * MASK), ("sum", row[kept].sum()), ("mean", row[kept].mean())):
        got = divergence_loss(student, teacher, AB, mask=MASK.to(dtype), reduction=reduction)
        torch.testing.assert_close(got, wanted)


def test_a_fractional_mask_weighs() -> None:
    student, teacher = logits(4, 7)
    mask = torch.tensor([0.5, 0.0, 2.0, 1.0])
    row = by_hand(student, teacher, AB)
    torch.testing.assert_close(divergence_loss(student, teacher, AB, mask=mask), (row * mask).sum() / mask.sum())
    torch.testing.assert_close(divergence_loss(student, teacher, AB, mask=mask, reduction="none"), row * mask)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_where_masked_has_no_effect(reduction: str, side: int) -> None:
    student, teacher = logits(3, 4, 7)
    clean = divergence_loss(student, teacher, AB, mask=MASK, reduction=reduction)
    (wanted,) = torch.autograd.grad(clean.sum(), student)
    with torch.no_grad():
        (student, teacher)[side][MASK == 0] = torch.nan
    got = divergence_loss(student, teacher, AB, mask=MASK, reduction=reduction)
    (gradient,) = torch.autograd.grad(got.sum(), student)
    assert torch.equal(got, clean)
    assert torch.equal(gradient, wanted)
    assert gradient[MASK == 0].count_nonzero() == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(3, 4, 7), (0, 7)], ids=str)
def test_nothing_left_gives_zero_and_zero_gradients(reduction: str, shape: tuple[int, ...]) -> None:
    student, teacher = logits(*shape)
    loss = divergence_loss(student, teacher, AB, mask=torch.zeros(shape[:-1]), reduction=reduction)
    loss.sum().backward()
    assert loss.count_nonzero() == 0
    assert torch.equal(student.grad, torch.zeros(shape))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_square_of_the_temperature(reduction: str) -> None:
    student, teacher = logits(5, 7)
    plain = divergence_loss(student, teacher, AB, temperature=3.0, reduction=reduction)
    scaled = divergence_loss(
        student, teacher, AB, temperature=3.0, reduction=reduction, scale_by_temperature_squared=True
    )
    torch.testing.assert_close(scaled, 9 * plain)
    assert not torch.allclose(plain, divergence_loss(student, teacher, AB, reduction=reduction))


def test_it_is_linear_divergence_on_logits() -> None:
    student, teacher = logits(3, 4, 7)
    flat = linear_divergence(
        Dense(student.reshape(-1, 7)), Dense(teacher.reshape(-1, 7)), AB, row_weight=MASK.reshape(-1).float()
    )
    assert torch.equal(divergence_loss(student, teacher, AB, mask=MASK), flat.loss)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits(5, 7)
    teacher.requires_grad_()
    for reduction in ("mean", "none"):
        divergence_loss(student, teacher, AB, reduction=reduction).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reduction": "batchmean"}, "'mean', 'sum' or 'none'"),
        ({"mask": torch.ones(4)}, "one number per row"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, "one class per row"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"temperature": -2.0, "reduction": "none"}, "temperature must be"),
        ({"temperature": float("nan"), "reduction": "none"}, "temperature must be"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], says: str) -> None:
    student, teacher = logits(5, 7)
    with pytest.raises(ConfigError, match=says):
        divergence_loss(student, teacher, AB, **options)


def test_rows_of_another_kind_are_for_the_other_function() -> None:
    with pytest.raises(ConfigError, match=r"teacher's logits must be a tensor, got Dense.*linear_divergence"):
        divergence_loss(torch.zeros(2, 3), Dense(torch.zeros(2, 3)), AB)  # type: ignore[arg-type]
