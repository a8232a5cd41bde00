"""Problems for the op, and comparisons of two ways of solving them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import abkd
from abkd import divergences
from abkd.ops import Averaged, Dense, Head, Projected, RowFacts, RowLosses, Rows, TeacherRows, TopK, linear_divergence
from abkd.ops._compilers import compiler_missing

EVERY = [
    each
    for name in divergences.__all__
    if isinstance(kind := getattr(divergences, name), type) and kind not in (abkd.Divergence, divergences.Pointwise)
    for each in kind.examples()
]
OF_BUCKETS = [
    each for each in EVERY if not each.needs_full_distribution
]  # those that a TopK teacher can be asked about

FORMS = [False] if compiler_missing(torch.device("cpu")) else [False, True]  # compiled?
WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.0, 3.0, 1.0, 0.0, 0.25])


def confidence(facts: RowFacts) -> Tensor:
    return facts.log_p.exp().amax(-1)


def surprise(facts: RowFacts) -> Tensor:
    return (facts.log_p - facts.log_q).abs().amax(-1)


SHAPES = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.7},
    "everything": {"bias": True, "scale": 1.3, "softcap": 2.0},
    "dense student": {"dense_student": True},
    "dense teacher": {"dense_teacher": True, "bias": True},
    "dense both": {"dense_student": True, "dense_teacher": True},
}
OPTIONS = {
    "tempered": {"temperature": 2.5},
    "cold": {"temperature": 0.5, "scale_by_temperature_squared": True},
    "T²": {"temperature": 2.0, "scale_by_temperature_squared": True, "kd_weight": 0.5},
    "weights": {"row_weight": WEIGHT},
    "function": {"row_weight": confidence},
    "both": {"row_weight": (WEIGHT, surprise), "temperature": 1.5},
    "total": {"row_weight": WEIGHT, "total_weight": 40.0},
    "total tensor": {"row_weight": surprise, "total_weight": torch.tensor(7)},
}


@dataclass(frozen=True)
class Counting(abkd.Divergence):
    """Squared distance of the log-probabilities of the label; remembers how many rows it saw."""

    seen: list[int] = field(default_factory=list, compare=False)

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        self.seen.append(len(log_p))
        if targets is None:
            return (log_p - log_q).square().sum(-1)
        return (log_p - log_q).gather(-1, targets[:, None]).square().squeeze(-1)


@dataclass
class Problem:
    """Student tensors that require gradients, a teacher, targets."""

    leaves: dict[str, Tensor]
    teacher: TeacherRows | None
    targets: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    softcap: float | None = None

    @property
    def student(self) -> Rows:
        if "values" in self.leaves:
            return Dense(self.leaves["values"])
        get = self.leaves.get
        return Projected(
            self.leaves["hidden"], Head(self.leaves["weight"], get("bias"), get("scale", 1.0), self.softcap)
        )

    def fresh(self, dtype: torch.dtype | None = None, *, teacher: bool = False) -> Problem:
        """The same values in separate leaves."""
        leaves = {
            name: leaf.detach().to(dtype or leaf.dtype).clone().requires_grad_(leaf.requires_grad)
            for name, leaf in self.leaves.items()
        }
        side = self.teacher
        if teacher and dtype is not None and isinstance(side, TopK):
            side = replace(side, log_p=side.log_p.to(dtype), log_tail=side.log_tail.to(dtype))
        elif teacher and dtype is not None and isinstance(side, Averaged):
            side = replace(side, parts=tuple(part.to(dtype) for part in side.parts))
        elif teacher and dtype is not None and isinstance(side, Projected | Dense):
            side = side.to(dtype)
        return replace(self, leaves=leaves, teacher=side)

    def solve(self, divergence: abkd.Divergence, **options: Any) -> RowLosses:
        if divergence.needs_targets:
            options.setdefault("targets", self.targets)
        return linear_divergence(self.student, self.teacher, divergence, **{**self.options, **options})


def problem(
    rows: int = 13,
    classes: int = 37,
    *,
    seed: int = 0,
    spread: float = 1.0,
    bias: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    dense_student: bool = False,
    dense_teacher: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Problem:
    """Random rows: width 6 for the student, 9 for the teacher; they depend on the seed of the whole run."""
    draw = torch.Generator().manual_seed(seed + 1000 * int(os.environ.get("ABKD_TEST_SEED", "0")))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).mul(spread).to(dtype)

    leaves = {"hidden": normal(rows, 6), "weight": normal(classes, 6)}
    if bias:
        leaves["bias"] = normal(classes)
    if scale is not None:
        leaves["scale"] = torch.tensor(scale, dtype=dtype)
    if dense_student:
        leaves = {"values": normal(rows, classes)}
    teacher = Dense(normal(rows, classes)) if dense_teacher else Projected(normal(rows, 9), Head(normal(classes, 9)))
    targets = torch.randint(classes, (rows,), generator=draw)
    for leaf in leaves.values():
        leaf.requires_grad_()
    return Problem(leaves, teacher, targets, options, softcap)


def bucketed(teacher: Rows, k: int, temperature: float = 1.0, dtype: torch.dtype | None = None) -> TopK:
    """A teacher's rows as a top-k cache stores them, at a temperature."""
    logits = teacher.logits(slice(None)).detach()
    log_p = torch.log_softmax(logits.double() / temperature, -1)
    top = log_p.topk(k, -1)
    tail = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    dtype = dtype or logits.dtype
    return TopK(top.indices, top.values.to(dtype), tail.to(dtype), logits.shape[-1])


def gradients(one: Problem, divergence: abkd.Divergence, **options: Any) -> tuple[RowLosses, dict[str, Tensor | None]]:
    """The result, and the gradients of its loss, of a fresh copy."""
    mine = one.fresh()
    result = mine.solve(divergence, **options)
    result.loss.backward()
    return result, {name: leaf.grad for name, leaf in mine.leaves.items()}


def gap(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest expected number (absolute if all are small)."""
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item() if wanted.numel() else 0.0
