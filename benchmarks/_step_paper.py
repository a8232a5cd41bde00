"""A re-implementation of the paper's training loop, without optimisations.

Every row is padded to the maximum length, both heads are applied at every position, both models' logits are dense, the
loss is the textbook formula with autograd, and masked positions are multiplied by 0 at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from abkd import AlphaBeta
from abkd.data import Example
from benchmarks._textbook import row_losses

TokenLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_with_teacher(z_teacher: Tensor, z_student: Tensor) -> Tensor:
    """``-Σ p·ln q`` per position: forward KL without the teacher's entropy, as in the paper's code."""
    p = torch.softmax(z_teacher, -1)
    return -(p * torch.log_softmax(z_student, -1)).sum(-1)


def alpha_beta(z_teacher: Tensor, z_student: Tensor) -> Tensor:
    """``D_AB`` per position with the paper's α and β, by powers of probabilities."""
    return row_losses(z_teacher, z_student, AlphaBeta(0.2, 0.7))


def train(
    student: Any,
    teacher: Any,
    batches: Sequence[Sequence[Example]],
    *,
    loss: TokenLoss,
    pad_to: int,
    after_step: Callable[[float], None],
) -> None:
    """One AdamW step per batch; ``after_step`` is called with each loss."""
    student.train()
    teacher.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    for batch in batches:
        ids, attention, counts = padded(batch, pad_to)
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "use_cache": False}
        z_student = student(**inputs).logits
        with torch.no_grad():
            z_teacher = teacher(**inputs).logits
        per_position = loss(z_teacher[:, :-1], z_student[:, :-1])
        value = (per_position * counts[:, 1:]).sum() / counts[:, 1:].sum()
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step(value.item())


def padded(batch: Sequence[Example], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and mask of trained tokens, each ``[B, length]``, right-padded."""
    ids, attention, trained = (torch.zeros(len(batch), length, dtype=torch.int64) for _ in range(3))
    for i, row in enumerate(batch):
        end = len(row["input_ids"])
        ids[i, :end] = torch.tensor(row["input_ids"])
        attention[i, :end] = 1
        trained[i, :end] = torch.tensor(row["trained"]).long()
    return ids, attention, trained
