"""Several distances from one projection of both heads, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from abkd.divergences import ForwardKL
from abkd.ops._checks import check_divergence, check_rows, checked_share
from abkd.ops._linear_divergence import plan_chunks
from abkd.ops._logits import as_multiplied, no_teacher, product_dtype, student_logits, teacher_logits
from abkd.ops._row_loss_spec import RowColumns, RowLossSpec
from abkd.ops._rows import blocks
from abkd.ops._types import Averaged, ChunkPlan, Dense, Rows, TeacherRows, TopK


@torch.no_grad()
def row_metrics(
    student: Rows,
    teacher: TeacherRows | None,
    divergences: Mapping[str, RowLossSpec],
    targets: Tensor | None,
    *,
    teacher_share: Mapping[str, Tensor] | None = None,
    plan: ChunkPlan | None = None,
) -> dict[str, Tensor]:
    """Several distances from one projection of both heads, for evaluation.

    Args:
        student, teacher: as in :func:`abkd.linear_divergence`, ``N`` rows. A ``TopK`` holds log-probabilities at one
            temperature: only distances at that temperature are meaningful.
        divergences: by name, each with its temperature; may be empty.
        targets: ``[N]``, or None: no cross-entropy, and no divergence that uses the label.
        teacher_share: by divergence name, ``[N]``: the teacher's share of each row's mixture.

    Returns:
        ``[N]`` tensors: one per divergence, and ``cross_entropy``, ``teacher_cross_entropy``, ``agreement``; without
        targets the first two of these are omitted. Without a teacher the distances are 0, and the last two are omitted.
        A divergence with a batch axis sees all rows of the call at once.
    """
    check_rows(student, teacher, targets)
    wanted = dict(divergences) or {"": RowLossSpec(ForwardKL())}  # for the columns that do not depend on a divergence
    for spec in wanted.values():
        check_divergence(spec.divergence, teacher, targets)
    position = torch.arange(len(student), device=student.device)
    of_rows = dict.fromkeys(wanted, RowColumns(position=position))
    for name, share in (teacher_share or {}).items():
        of_rows[name] = RowColumns(checked_share(share, wanted[name].divergence, student), position=position)
    known = no_teacher(student) if teacher is None else as_multiplied(teacher)
    student = student.to(product_dtype(student))
    plan = plan or plan_chunks(len(student), student.classes, student.device)
    together = any(spec.divergence.batch_axis for spec in wanted.values())
    most = len(student) if together else plan.rows_per_chunk
    temperatures = {1.0, *(spec.temperature for spec in wanted.values())}
    columns: dict[str, list[Tensor]] = {}
    with torch.autocast(student.device.type, enabled=False):
        for rows, z, sides in chunks(student, known, temperatures, most):
            cut = {name: each.rows(rows) for name, each in of_rows.items()}
            label = None if targets is None else targets[rows]
            for name, values in _distances(z, sides, wanted, label, cut, plan.compiled).items():
                columns.setdefault(name, []).append(values)
    left_out = {""} if teacher is not None else {"", "teacher_cross_entropy", "agreement"}
    return {name: torch.cat(values) for name, values in columns.items() if name not in left_out}


def chunks(
    student: Rows, teacher: TeacherRows, temperatures: Iterable[float], most: int
) -> Iterator[tuple[slice, Tensor, dict[float, Tensor | TopK]]]:
    """At most ``most`` rows after the other: which, the student's logits, and the teacher's for each temperature.

    With a ``TopK`` the student's logits may be written to.
    """
    most = max(1, min(most, len(student)))
    logits, sides = student_logits(student, most), _sides(teacher, most, temperatures)
    for start in range(0, max(len(student), 1), most):
        rows = slice(start, start + most)
        z = logits(rows)
        if isinstance(teacher, TopK) and isinstance(student, Dense):
            z = z.clone()  # the caller's logits must not be written to, not even temporarily
        yield rows, z, sides(rows)


def _sides(
    teacher: TeacherRows, most: int, temperatures: Iterable[float]
) -> Callable[[slice], dict[float, Tensor | TopK]]:
    """A function from rows to the teacher's logits, or its ``TopK``, for each temperature."""
    if isinstance(teacher, Averaged) and teacher.of == "probabilities":
        each = {temperature: teacher_logits(teacher, most, temperature) for temperature in temperatures}
        return lambda rows: {temperature: logits(rows) for temperature, logits in each.items()}
    one = teacher_logits(teacher, most, 1.0)
    return lambda rows: dict.fromkeys(temperatures, one(rows))


def _distances(
    student: Tensor,
    sides: Mapping[float, Tensor | TopK],
    divergences: Mapping[str, RowLossSpec],
    targets: Tensor | None,
    of_rows: Mapping[str, RowColumns],
    compiled: bool,
) -> dict[str, Tensor]:
    ones = torch.ones(len(student), device=student.device)
    columns: dict[str, Tensor] = {}
    for name, spec in divergences.items():
        teacher = sides[spec.temperature]
        block = blocks(student, teacher, targets, ones, spec, grad=False, compiled=compiled, columns=of_rows[name])
        columns |= {name: block.divergence * block.weight, "agreement": block.agreement}
        if block.cross_entropy is not None:
            columns["cross_entropy"] = block.cross_entropy
    return columns if targets is None else {**columns, "teacher_cross_entropy": _cross_entropy(sides[1.0], targets)}


def _cross_entropy(teacher: Tensor | TopK, targets: Tensor) -> Tensor:
    """``-log p[target]`` at temperature 1; for a target in a ``TopK``'s tail, without ``log_target``, the tail's."""
    if not isinstance(teacher, TopK):
        wide = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
        return wide.logsumexp(-1) - wide.gather(-1, targets[:, None]).squeeze(-1)
    if teacher.log_target is not None:
        return -teacher.log_target.to(torch.promote_types(teacher.log_target.dtype, torch.float32))
    wide = teacher.log_p.to(torch.promote_types(teacher.log_p.dtype, torch.float32))
    found = teacher.ids == targets[:, None]
    known = torch.where(found, wide, 0.0).sum(-1)
    return -torch.where(found.any(-1), known, teacher.log_tail.to(wide.dtype))
