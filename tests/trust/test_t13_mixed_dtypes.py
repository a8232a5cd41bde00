"""Equal logits in different dtypes have divergence 0, never below."""

from __future__ import annotations

import pytest
import torch
from op_parts import EVERY

import abkd
from abkd import divergence_loss
from abkd.ops import Head, Projected, linear_divergence

CLASSES = 50_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", [each for each in EVERY if not each.needs_full_distribution], ids=repr)
def test_no_distance_is_negative(divergence: abkd.Divergence, dtype: torch.dtype) -> None:
    logits = 3.0 * torch.randn(2, CLASSES)
    low = logits.to(dtype)
    targets = low.argmax(-1) if divergence.needs_targets else None
    for student, teacher in ((low, low.float()), (low.float(), low)):
        rows = divergence_loss(student, teacher, divergence, targets=targets, reduction="none")
        assert (rows >= -1e-6).all()
        assert (rows <= 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nor_in_the_op(dtype: torch.dtype) -> None:
    """Heads of two dtypes with the same values."""
    hidden, weight = torch.randn(3, 8).to(dtype), torch.randn(CLASSES, 8).to(dtype)
    low, full = Projected(hidden, Head(weight)), Projected(hidden.float(), Head(weight.float()))
    for divergence in (abkd.ForwardKL(), abkd.ReverseKL(), abkd.JensenShannon(), abkd.AlphaBeta(0.2, 0.7)):
        for student, teacher in ((low, full), (full, low)):
            assert (linear_divergence(student, teacher, divergence).divergence >= -1e-6).all()
