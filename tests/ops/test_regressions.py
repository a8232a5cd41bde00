"""Defects of the method's released code on whole batches; each is a regression test here.

The defects of a single row are in ``tests/divergences/test_known_defects.py``.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import abkd
from abkd.errors import VocabularyError

POINT = abkd.AlphaBeta(0.2, 0.7)
DIVERGENCES = [POINT, abkd.ForwardKL(), abkd.AlphaBeta(1.2, -0.1)]


def batch(rows: int = 2, tokens: int = 5, classes: int = 11) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(2, rows, tokens, classes)
    return student.clone().requires_grad_(), teacher


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_d4_no_valid_label_is_zero(divergence: abkd.Divergence, reduction: str) -> None:
    student, teacher = batch()
    mask = torch.zeros(student.shape[:-1], dtype=torch.bool)
    loss = abkd.divergence_loss(student, teacher, divergence, mask=mask, reduction=reduction)  # type: ignore[arg-type]
    loss.sum().backward()
    assert not loss.any()
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("impl", ["auto", "chunked", "reference"])
def test_d4_no_row_has_weight_in_the_op(impl: str) -> None:
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    teacher = abkd.Projected(torch.randn(4, 3), abkd.Head(torch.randn(7, 3)))
    out = abkd.linear_divergence(
        abkd.Projected(hidden, abkd.Head(weight)),
        teacher,
        POINT,
        row_weight=torch.zeros(4),
        impl=impl,  # type: ignore[arg-type]
    )
    assert out.loss.item() == 0
    out.loss.backward()
    for leaf in (hidden, weight):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_d7_what_is_at_a_masked_position_does_not_matter(bad: float, reduction: str, who: str) -> None:
    student, teacher = batch()
    mask = torch.ones(student.shape[:-1], dtype=torch.bool)
    mask[0, 2] = mask[1, 4] = False

    def loss_and_grad(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        leaf = student.detach().clone().requires_grad_()
        loss = abkd.divergence_loss(leaf, teacher, POINT, mask=mask, reduction=reduction)  # type: ignore[arg-type]
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    spoilt = [x.detach().clone() for x in (student, teacher)]
    for x in {"student": spoilt[:1], "teacher": spoilt[1:], "both": spoilt}[who]:
        x[0, 2] = bad
        x[1, 4, 3] = bad
    for got, wanted in zip(loss_and_grad(*spoilt), loss_and_grad(student, teacher), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_d7_a_row_without_weight_is_never_computed(impl: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 3), torch.randn(7, 3, requires_grad=True)
    teacher_hidden, teacher_head = torch.randn(6, 3), abkd.Head(torch.randn(7, 3))
    row_weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 1.0])

    def run(fill: float) -> tuple[Tensor, Tensor, Tensor]:
        h_s, h_t = hidden.clone(), teacher_hidden.clone()
        h_s[1], h_t[3] = fill, fill
        h_s.requires_grad_()
        out = abkd.linear_divergence(
            abkd.Projected(h_s, abkd.Head(weight)),
            abkd.Projected(h_t, teacher_head),
            POINT,
            row_weight=row_weight,
            impl=impl,  # type: ignore[arg-type]
        )
        return out.loss.detach(), *torch.autograd.grad(out.loss, (h_s, weight))

    for got, wanted in zip(run(math.nan), run(0.0), strict=True):
        assert torch.equal(got, wanted)


def test_d8_different_vocabularies_are_refused_with_the_way_out() -> None:
    """Truncating to the shared classes is the caller's decision; the error names the sizes, not torch's internals."""
    student, teacher = torch.randn(2, 3, 10), torch.randn(2, 3, 12)
    with pytest.raises(VocabularyError) as refusal:
        abkd.divergence_loss(student, teacher, POINT)
    assert "10" in str(refusal.value)
    assert "12" in str(refusal.value)
    assert "cut" in str(refusal.value)
    with pytest.raises(VocabularyError) as refusal:
        abkd.linear_divergence(
            abkd.Projected(torch.randn(4, 3), abkd.Head(torch.randn(10, 3))),
            abkd.Projected(torch.randn(4, 5), abkd.Head(torch.randn(12, 5))),
            POINT,
        )
    assert "10" in str(refusal.value)
    assert "12" in str(refusal.value)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_d8_cut_to_the_shared_classes(impl: str) -> None:
    """The suggestion in the message is exact: a class that is impossible for both changes nothing."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 10), torch.randn(5, 12)
    padded = torch.cat([student, torch.full((5, 2), -math.inf)], -1)
    masked = teacher.clone()
    masked[:, 10:] = -math.inf
    losses = [
        abkd.linear_divergence(abkd.Dense(one), abkd.Dense(two), POINT, impl=impl).loss  # type: ignore[arg-type]
        for one, two in ((student, teacher[:, :10]), (padded, masked))
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_d11_mean_over_tokens_not_over_ranks() -> None:
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(2, 20, 100), 2 * torch.randn(2, 20, 100)
    teacher[0] = student[0] + 8 * torch.randn(20, 100)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, 0] = True
    mask[1, :19] = True

    whole = abkd.divergence_loss(student, teacher, POINT, mask=mask)
    assert whole.item() == pytest.approx(4.1032, rel=2e-5)
    alone = [abkd.divergence_loss(student[i], teacher[i], POINT, mask=mask[i]).item() for i in (0, 1)]
    assert alone == pytest.approx([7.3879, 3.9303], rel=2e-5)  # the defect gives their mean, 5.6591

    shares = [
        abkd.linear_divergence(
            abkd.Dense(student[i]), abkd.Dense(teacher[i]), POINT, row_weight=mask[i].float(), total_weight=20
        ).loss
        for i in (0, 1)
    ]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-6)  # type: ignore[union-attr]


def test_the_loss_of_the_op_and_the_plain_loss_are_one() -> None:
    student, teacher = batch()
    for divergence in DIVERGENCES:
        plain = abkd.divergence_loss(student, teacher, divergence, temperature=2.0, reduction="none")
        log_p, log_q = torch.log_softmax(teacher / 2, -1), torch.log_softmax(student / 2, -1)
        assert plain.shape == student.shape[:-1]
        assert torch.allclose(plain.double(), divergence(log_p.double(), log_q.double()), rtol=2e-6)
        mean = abkd.divergence_loss(student, teacher, divergence, temperature=2.0)
        assert mean.item() == pytest.approx(plain.mean().item(), rel=1e-6)
        total = abkd.divergence_loss(student, teacher, divergence, temperature=2.0, reduction="sum")
        assert total.item() == pytest.approx(plain.sum().item(), rel=1e-6)


@pytest.mark.parametrize("point", [(0.8, 0.3), (0.2, 0.7)])
def test_temperature_squared_keeps_the_scale_of_the_gradient(point: tuple[float, float]) -> None:
    """Without it the gradient falls by a factor of about 30 from T=1 to 8: the weight would have to be tuned with T."""
    student, teacher = batch(classes=100)
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        loss = abkd.divergence_loss(
            student, teacher, abkd.AlphaBeta(*point), temperature=temperature, scale_by_temperature_squared=True
        )
        plain = abkd.divergence_loss(student, teacher, abkd.AlphaBeta(*point), temperature=temperature)
        assert loss.item() == pytest.approx(temperature**2 * plain.item(), rel=1e-6)
        norms.append(torch.autograd.grad(loss, student)[0].norm().item())
    assert max(norms) < 6 * min(norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype: torch.dtype) -> None:
    """Softmax in float32: the loss is that of the rounded logits, the gradient has their precision."""
    student, teacher = (x.detach().to(dtype) for x in batch())
    student.requires_grad_()
    loss = abkd.divergence_loss(student, teacher, POINT)
    exact = abkd.divergence_loss(student.detach().double(), teacher.double(), POINT)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    loss.backward()
    assert student.grad is not None
    assert student.grad.dtype == dtype
    assert student.grad.isfinite().all()
