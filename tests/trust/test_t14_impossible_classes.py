"""Logits of minus infinity, as in masks and padded vocabularies: finite, and the same as without these classes."""

from __future__ import annotations

import pytest
import torch
from op_parts import EVERY

import abkd
from abkd import divergence_loss
from abkd.ops import Dense, linear_divergence

POSSIBLE = [each for each in EVERY if "classes_impossible_to_both_do_not_matter" not in each.exempt]


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape, requires_grad=True), torch.randn(*shape)


@pytest.mark.parametrize("divergence", POSSIBLE, ids=repr)
def test_impossible_for_both_is_as_if_cut_away(divergence: abkd.Divergence) -> None:
    """A vocabulary padded with -inf on both sides is the vocabulary without the padding."""
    student, teacher = pair(5, 7)
    padding = torch.full((5, 3), -torch.inf)
    padded = torch.cat([student, padding], -1), torch.cat([teacher, padding], -1)
    targets = teacher.argmin(-1) if divergence.needs_targets else None
    for reduction in ("mean", "sum", "none"):
        found, wanted = (
            divergence_loss(*both, divergence, targets=targets, reduction=reduction)
            for both in (padded, (student, teacher))
        )
        torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(each.sum(), student, allow_unused=True)[0] for each in (found, wanted)]
    torch.testing.assert_close(*slopes, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "divergence",
    [abkd.ForwardKL(), abkd.JensenShannon(), abkd.AlphaBeta(0.2, 0.7), abkd.TotalVariation(), abkd.SkewReverseKL(0.1)],
    ids=repr,
)
def test_impossible_for_the_teacher_alone(divergence: abkd.Divergence) -> None:
    """If the divergence is finite: its value is that of float64, its gradient is finite."""
    student, teacher = pair(5, 7)
    teacher = teacher.index_fill(-1, torch.tensor([1, 4]), -torch.inf)
    found = linear_divergence(Dense(student), Dense(teacher), divergence)
    wanted = divergence(torch.log_softmax(teacher.double(), -1), torch.log_softmax(student.detach().double(), -1))
    torch.testing.assert_close(found.divergence.double(), wanted, atol=1e-6, rtol=1e-5)
    found.loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
