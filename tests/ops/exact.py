"""A float64 reference for the op, with the size of the summands of every number, to bound rounding errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from op_parts import Problem, gradients
from torch import Tensor

import abkd
from abkd.ops import Averaged, ChunkPlan, Dense, Projected, RowLosses, TeacherRows, TopK
from rounding import FACTOR, assert_rounded

NUMBERS = ("divergence", "cross_entropy", "student_entropy", "teacher_entropy", "agreement", "weight")
Sizes = dict[str, Tensor]


@dataclass
class Exact:
    """The reference in float64: ``result`` and ``gradients``, each with its ``Σ|parts|`` under the same name."""

    result: RowLosses
    gradients: dict[str, Tensor | None]
    sizes: Sizes
    gradient_sizes: Sizes
    tied: Tensor  # rows ``[N]`` with two most probable classes so close that rounding may exchange them


def exactly(one: Problem, divergence: abkd.Divergence, **options: Any) -> Exact:
    """Logits first, so that their gradient ``[N, V]``, of which all other gradients are sums, is known."""
    wide = one.fresh(torch.float64, teacher=True)
    logits = wide.student.logits(slice(None))
    flat = replace(wide, leaves={"values": logits.detach().requires_grad_()})
    options = {**one.options, **options}
    result = flat.solve(divergence, impl="reference", **options)
    (pull,) = torch.autograd.grad(result.loss, flat.leaves["values"])
    learning = {name: leaf for name, leaf in wide.leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(logits, learning.values(), pull)
    with torch.no_grad():
        temperature = torch.as_tensor(options.get("temperature", 1.0), dtype=torch.float64)
        of_row = 1.0 + (_largest(wide.student) + _largest(wide.teacher)) / temperature.clamp(max=1.0)
        parts = _parts(logits, pull, temperature) * of_row[:, None]
        sizes = _sizes(result, parts, of_row)
    gradients = {**dict.fromkeys(one.leaves), **dict(zip(learning, found, strict=True))}
    return Exact(
        result, gradients, sizes, _carried(wide, parts), _tied(wide, of_row, next(iter(one.leaves.values())).dtype)
    )


def _largest(rows: TeacherRows | None) -> Tensor:
    """The largest logit of each row by the size of its summands: the error of its exponential, in ε."""
    if rows is None:
        return torch.zeros(1, dtype=torch.float64)
    if isinstance(rows, Averaged):
        return torch.stack([_largest(part) for part in rows.parts]).amax(0)
    if isinstance(rows, Dense | TopK):
        return (rows.values if isinstance(rows, Dense) else rows.log_p).abs().nan_to_num(posinf=0.0).amax(-1)
    head = rows.head
    size = rows.hidden.abs() @ head.weight.abs().T * abs(head.scale)
    return (size if head.bias is None else size + head.bias.abs()).amax(-1)


def _tied(wide: Problem, of_row: Tensor, dtype: torch.dtype) -> Tensor:
    """A soft cap puts many logits close to it: another order of summation may change which is the largest."""
    least = FACTOR * torch.finfo(dtype).eps * of_row
    rows = [wide.student.logits(slice(None))]
    if isinstance(wide.teacher, Dense | Projected):
        rows.append(wide.teacher.logits(slice(None)))
    tops = [logits.topk(min(2, logits.shape[-1])).values for logits in rows]
    return torch.stack([top[:, 0] - top[:, -1] <= least for top in tops]).any(0)


def _parts(logits: Tensor, pull: Tensor, temperature: Tensor) -> Tensor:
    """Every class's own pull, and its share of all the others', through the normalisation."""
    share = torch.maximum(torch.softmax(logits, -1), torch.softmax(logits / temperature.reshape(-1, 1), -1))
    return pull.abs() + share * pull.abs().sum(-1, keepdim=True)


def _sizes(result: RowLosses, parts: Tensor, of_row: Tensor) -> Sizes:
    """A loss has the error that its logits' errors cause, and so has a row's metric in its own unit."""
    divergence = result.divergence.nan_to_num(posinf=0.0)
    pulled = parts.sum(-1) * result.weight.sum() / result.weight.clamp(min=1e-3)
    sizes = {
        "loss": result.loss.abs() * of_row.max() + parts.sum(),
        "divergence": divergence * of_row + pulled,
        "student_entropy": result.student_entropy + of_row,
        "teacher_entropy": result.teacher_entropy + of_row,
        "agreement": torch.ones_like(divergence),
        "weight": result.weight * of_row,
    }
    if result.cross_entropy is not None:
        sizes["cross_entropy"] = result.cross_entropy.nan_to_num(posinf=0.0) + of_row
    return sizes


def _carried(wide: Problem, parts: Tensor) -> Sizes:
    """The sums of the parts of the logits' gradient on the way to the student's tensors."""
    if "values" in wide.leaves:
        return {"values": parts}
    rows, head = wide.leaves["hidden"].abs(), wide.leaves["weight"].abs()
    scale = abs(wide.student.head.scale)  # type: ignore[union-attr]
    return {
        "hidden": scale * parts @ head,
        "weight": scale * parts.T @ rows,
        "bias": parts.sum(0),
        "scale": (parts * (rows @ head.T)).sum(),
    }


def sizes_of_rows(
    divergence: abkd.Divergence, z: Tensor, y: Tensor, targets: Tensor, temperature: float, ce_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``Σ|parts|`` of a row's divergence ``[N]``, of its logits' gradient ``[N, V]``, and of a log-probability ``[N]``.

    From the slopes themselves, before the normalisation cancels them: for rows with all mass in one class.
    """
    z, y = z.double(), y.double()
    log_p, log_q = (torch.log_softmax(logits / temperature, -1).requires_grad_() for logits in (y, z))
    row = divergence(log_p, log_q, targets, teacher_grad=True)
    of_p, of_q = (slope.abs() for slope in torch.autograd.grad(row.sum(), (log_p, log_q)))
    with torch.no_grad():
        of_row = 1.0 + (z.abs().amax(-1) + y.abs().amax(-1)) / min(temperature, 1.0)
        share = torch.maximum(log_q.exp(), torch.softmax(z, -1))
        soft = (of_q + share * of_q.sum(-1, keepdim=True)) / temperature
        hard = ce_weight * (share + torch.nn.functional.one_hot(targets, z.shape[-1]))
        return row.detach() + (of_p + of_q).sum(-1) * of_row, (soft + hard) * of_row[:, None], of_row


def assert_same(one: Problem, divergence: abkd.Divergence, **options: Any) -> RowLosses:
    """The chunked op and the reference give the loss, the numbers and the gradients of the reference in float64."""
    plan = options.pop("plan", ChunkPlan(5, False))
    exact = exactly(one, divergence, **options)
    want, wanted = gradients(one, divergence, impl="reference", **options)
    got, given = gradients(one, divergence, plan=plan, **options)
    assert got.loss.dtype == want.loss.dtype
    dtype = next(iter(one.leaves.values())).dtype
    for who, result, found in (("the reference", want, wanted), ("the op", got, given)):
        for name in ("loss", *NUMBERS):
            number, true = getattr(result, name), getattr(exact.result, name)
            assert (number is None) == (true is None), name
            if number is not None and name == "agreement":
                number, true = number[~exact.tied], true[~exact.tied]
            if number is not None:
                assert_rounded(number, true, exact.sizes[name].max(), dtype, name=f"{who}'s {name}")
                assert name == "loss" or not number.requires_grad
        for name, true in exact.gradients.items():
            gradient = found[name]
            assert (gradient is None) == (true is None), name
            if gradient is not None and true is not None:
                assert gradient.dtype == one.leaves[name].dtype
                assert gradient.shape == one.leaves[name].shape
                assert_rounded(gradient, true, exact.gradient_sizes[name].max(), name=f"{who}'s gradient of {name}")
    return got
