"""Problems for the op, and comparisons of two ways of solving them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import abkd
from abkd import divergences
from abkd.ops import Dense, Head, Plan, Projected, RowLosses, linear_divergence

NUMBERS = ("divergence", "cross_entropy", "student_entropy", "teacher_entropy", "agreement", "weight")
EVERY = [
    each
    for name in divergences.__all__
    if isinstance(kind := getattr(divergences, name), type) and kind not in (abkd.Divergence, divergences.Pointwise)
    for each in kind.examples()
]


@dataclass
class Problem:
    """Student tensors that want gradients, a teacher, targets."""

    leaves: dict[str, Tensor]
    teacher: Projected | Dense
    targets: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    softcap: float | None = None

    @property
    def student(self) -> Projected | Dense:
        if "values" in self.leaves:
            return Dense(self.leaves["values"])
        get = self.leaves.get
        return Projected(
            self.leaves["hidden"], Head(self.leaves["weight"], get("bias"), get("scale", 1.0), self.softcap)
        )

    def fresh(self, dtype: torch.dtype | None = None, *, teacher: bool = False) -> Problem:
        """The same numbers in leaves of their own."""
        leaves = {
            name: leaf.detach().to(dtype or leaf.dtype).clone().requires_grad_(leaf.requires_grad)
            for name, leaf in self.leaves.items()
        }
        side = self.teacher
        if teacher and dtype is not None:
            side = side.to(dtype)
        return replace(self, leaves=leaves, teacher=side)

    def solve(self, divergence: abkd.Divergence, **options: Any) -> RowLosses:
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
    """Random rows: 6 wide for the student, 9 for the teacher."""
    draw = torch.Generator().manual_seed(seed)

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


def gradients(one: Problem, divergence: abkd.Divergence, **options: Any) -> tuple[RowLosses, dict[str, Tensor | None]]:
    """The result, and the gradients of its loss, of a fresh copy."""
    mine = one.fresh()
    result = mine.solve(divergence, **options)
    result.loss.backward()
    return result, {name: leaf.grad for name, leaf in mine.leaves.items()}


def gap(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest wanted number (of 1 where all are small)."""
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item() if wanted.numel() else 0.0


def assert_same(one: Problem, divergence: abkd.Divergence, *, tolerance: float = 1e-6, **options: Any) -> RowLosses:
    """The chunked op gives the reference's loss, numbers and gradients."""
    plan = options.pop("plan", Plan(5, False))
    want, wanted = gradients(one, divergence, impl="reference", **options)
    got, given = gradients(one, divergence, plan=plan, **options)
    assert got.loss.dtype == want.loss.dtype
    assert gap(got.loss, want.loss) <= tolerance
    for name in NUMBERS:
        ours, theirs = getattr(got, name), getattr(want, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or gap(ours, theirs) <= 5 * tolerance, name
        assert ours is None or not ours.requires_grad
    for name, gradient in wanted.items():
        mine = given[name]
        assert (mine is None) == (gradient is None), name
        if mine is not None and gradient is not None:
            assert mine.dtype == gradient.dtype
            assert mine.shape == gradient.shape
            # the scale's gradient is a sum over all N·V, whose parts cancel
            assert gap(mine, gradient) <= tolerance * (4 if name == "scale" else 1), (name, gap(mine, gradient))
    return got
