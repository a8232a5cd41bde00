"""The tensors of a case, and the reference answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from abkd import notation
from abkd.divergences import Divergence
from benchmarks._cases import Case
from benchmarks._textbook import cross_entropy, row_losses

_SPREAD = 3.0  # standard deviation of the logits, as in language models: a few probable classes, and a long tail
_ALIKE = 0.95  # correlation of the student's hidden states and head with the same dimensions of the teacher's
_REFERENCE_CLASSES = 1 << 23  # number of logits that the reference computes at once
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # logits near 16 in bf16 are right to 0.03, and so are probabilities


@dataclass
class Inputs:
    """Student (with gradients) and teacher by hidden states and head, labels, and the weights of the rows."""

    case: Case
    divergence: Divergence
    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    teacher_hidden: Tensor  # [N, K]
    teacher_weight: Tensor  # [V, K]
    targets: Tensor  # [N]
    row_weight: Tensor  # [N], 0 or 1

    def forget_gradients(self) -> None:
        """Drop the gradients before the next call."""
        self.hidden.grad = self.weight.grad = None

    @property
    def output_bytes(self) -> int:
        """The size of the two gradients."""
        return sum(leaf.numel() * leaf.element_size() for leaf in (self.hidden, self.weight))


@dataclass
class Answer:
    """The loss and its two gradients."""

    loss: float
    hidden: Tensor
    weight: Tensor


def make_inputs(case: Case) -> Inputs:
    """The tensors of a case, from a fixed seed; student and teacher are correlated, at a distance of 2 to 3 nats.

    (Independent models would be no fair test: Jensen-Shannon is at its maximum there, and its gradient a small
    difference of large numbers.)
    """
    draw = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, generator=draw)

    def like(teacher: Tensor) -> Tensor:
        own = normal(len(teacher), case.student).mul_((1 - _ALIKE**2) ** 0.5)
        shared = min(case.student, case.teacher)
        own[:, :shared].add_(teacher[:, :shared], alpha=_ALIKE)
        return own

    def ready(tensor: Tensor, scale: float = 1.0) -> Tensor:
        return tensor.mul_(scale).to(case.device, dtype)

    kept = torch.randperm(case.rows, generator=draw)[: max(1, round(case.weighted * case.rows))]
    hidden, weight = normal(case.rows, case.teacher), normal(case.classes, case.teacher)
    return Inputs(
        case=case,
        divergence=cast(Divergence, notation.parse(case.divergence)),
        hidden=ready(like(hidden)).requires_grad_(),
        weight=ready(like(weight), _SPREAD / case.student**0.5).requires_grad_(),
        teacher_hidden=ready(hidden),
        teacher_weight=ready(weight, _SPREAD / case.teacher**0.5),
        targets=torch.randint(case.classes, (case.rows,), generator=draw).to(case.device),
        row_weight=torch.zeros(case.rows).index_fill_(0, kept, 1.0).to(case.device),
    )


def reference(inputs: Inputs) -> Answer:
    """Loss and gradients in float64 by the textbook formulas, in chunks of rows."""
    weight, teacher_weight = inputs.weight.detach().double(), inputs.teacher_weight.double()
    kept = inputs.row_weight.nonzero().squeeze(-1)
    grad_hidden = torch.zeros_like(inputs.hidden, dtype=torch.float64)
    grad_weight = torch.zeros_like(weight)
    total = 0.0
    for rows in kept.split(max(1, _REFERENCE_CLASSES // len(weight))):
        hidden = inputs.hidden.detach()[rows].double()
        student = (hidden @ weight.T).requires_grad_()
        row = row_losses(inputs.teacher_hidden[rows].double() @ teacher_weight.T, student, inputs.divergence)
        if inputs.case.ce_weight:
            row = row + inputs.case.ce_weight * cross_entropy(student, inputs.targets[rows])
        loss = row.sum() / len(kept)
        (gradient,) = torch.autograd.grad(loss, student)
        grad_hidden[rows] = gradient @ weight
        grad_weight.addmm_(gradient.T, hidden)
        total += loss.item()
    return Answer(total, grad_hidden, grad_weight)


def errors(got: Answer, wanted: Answer) -> dict[str, float]:
    """The largest difference relative to the largest expected value, for the loss, d hidden and d head."""
    return {
        "loss": abs(got.loss - wanted.loss) / abs(wanted.loss),
        "hidden": _gap(got.hidden, wanted.hidden),
        "head": _gap(got.weight, wanted.weight),
    }


def _gap(got: Tensor, wanted: Tensor) -> float:
    pairs = zip(got.split(4096), wanted.split(4096), strict=True)
    largest = torch.stack([(mine.double() - right).abs().max() for mine, right in pairs]).max()
    return float(largest / wanted.abs().max())
