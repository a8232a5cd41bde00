"""The student in its final form: adapters merged and weights rounded as configured, and evaluated in that form."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from abkd.metrics import HELD_OUT
from abkd.models.adapters import has_adapters
from abkd.models.finite import is_finite
from abkd.models.rows import ModelRows
from abkd.models.saving import DTYPES, final_copy
from abkd.trainer._context import RunContext
from abkd.trainer._evaluation import evaluate_run

logger = logging.getLogger("abkd")

_WORSE = 0.01  # rounding may increase the held-out forward KL by this fraction


def final_form(run: RunContext, dataloader: Callable[[], DataLoader[object]]) -> tuple[nn.Module, dict[str, float]]:
    """The student in its final form, and its evaluation metrics if they differ from the last ones.

    The trained student is not modified; it is returned itself if it already has its final form. Rounded weights that
    are more than 1 % worse on the evaluation set, or not finite, are not used; a warning is logged.

    Args:
        dataloader: returns the batches to evaluate on.
    """
    args, student = run.args, run.task.models.student
    merge = has_adapters(student.model) and (args.merge_adapter or run.kind.merges_adapters)
    dtype = _dtype(run)
    if (merge or dtype) and run.sharded():
        logger.warning(
            "abkd: each process holds a shard of the student's weights, so the student is saved as it was trained: not "
            "rounded (save_dtype), with its adapters separate"
        )
        merge, dtype = False, None
    if not merge and dtype is None:
        return run.model(), {}
    model, metrics = _rounded(run, dtype, dataloader, merge=merge) if dtype is not None else (None, {})
    return (final_copy(student, dtype=None, merge=merge) if model is None else model), metrics


def _dtype(run: RunContext) -> torch.dtype | None:
    """The dtype to save in, if it is narrower than the training dtype."""
    name = run.args.save_dtype
    if name is None:
        return None
    parameters = run.task.models.student.model.parameters()
    trained = {weight.dtype for weight in parameters if weight.is_floating_point()}
    dtype = DTYPES[name]
    return dtype if any(each.itemsize > dtype.itemsize for each in trained) else None


def _rounded(
    run: RunContext, dtype: torch.dtype, dataloader: Callable[[], DataLoader[object]], *, merge: bool
) -> tuple[nn.Module | None, dict[str, float]]:
    """The student in ``dtype`` and its evaluation metrics; ``(None, {})`` if rounding would make it worse."""
    model = final_copy(run.task.models.student, dtype=dtype, merge=merge)
    name = str(dtype).removeprefix("torch.")
    if not all(map(is_finite, model.parameters())):
        logger.warning("abkd: some weights would be infinite in %s, so the student is saved as it was trained", name)
        return None, {}
    after: dict[str, float] = {}
    if run.task.held_out is not None:
        before, after = _last(run, dataloader), _measure(run, _rows_of(run, model), dataloader)
        key = "eval_forward_kl" if "eval_forward_kl" in after else "eval_loss"
        if not after[key] <= before[key] + _WORSE * abs(before[key]):
            logger.warning(
                "abkd: in %s the student would be worse on the evaluation set (%s %.4g instead of %.4g), so it is "
                "saved as it was trained",
                name,
                key.removeprefix("eval_"),
                after[key],
                before[key],
            )
            return None, {}
    logger.info("abkd: the student is saved in %s (save_dtype); it was trained in higher precision", name)
    return model.to(dtype), after


def _last(run: RunContext, dataloader: Callable[[], DataLoader[object]]) -> dict[str, float]:
    """The evaluation metrics of the student as it was trained."""
    state = run.state()
    best = run.args.load_best_model_at_end and state.best_model_checkpoint
    step = state.best_global_step if best else state.global_step
    for entry in reversed(state.log_history):
        if entry.get("step") == step and "eval_loss" in entry:
            return entry
    return _measure(run, None, dataloader)


def _rows_of(run: RunContext, model: nn.Module) -> ModelRows:
    """The rows of ``model``, read as those of the student."""
    student = run.task.models.student
    rows = student.of(model)
    rows.classes, rows.dense_because = student.classes, student.dense_because
    return rows


def _measure(
    run: RunContext, student: ModelRows | None, dataloader: Callable[[], DataLoader[object]]
) -> dict[str, float]:
    return {f"{HELD_OUT}{name}": value for name, value in evaluate_run(run, dataloader(), student).items()}
