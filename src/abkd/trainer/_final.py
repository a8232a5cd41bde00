"""The student as it is saved: merged and rounded as the run asks for, and measured like that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from abkd.models.adapters import has_adapters
from abkd.models.finite import is_finite
from abkd.models.saving import DTYPES, final_copy
from abkd.trainer._evaluation import held_out_metrics

if TYPE_CHECKING:
    from abkd.trainer._trainer import DistillTrainer

logger = logging.getLogger("abkd")

_WORSE = 0.01  # rounding may cost this share of the held-out forward KL


@contextmanager
def final_form(trainer: DistillTrainer) -> Iterator[None]:
    """While the student is saved: the trainer's model is the student in its final form.

    What was trained is untouched. Rounded weights that are more than 1 % worse on the held-out rows, or not finite, are
    not taken, which is said; where they are taken, the last evaluation is of them.
    """
    args, student = trainer.distill_args, trainer.models.student
    merge = has_adapters(student.model) and (args.merge_adapter or trainer.kind.merges_adapters)
    dtype = _dtype(trainer)
    if (merge or dtype) and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        logger.warning(
            "abkd: each process holds a part of the student's weights, so it is saved as it was trained, not rounded "
            "(save_dtype) and with its adapters apart"
        )
        merge, dtype = False, None
    if not merge and dtype is None:
        yield
        return
    model = _rounded(trainer, dtype, merge=merge) if dtype is not None else None
    if model is None:
        model = final_copy(student, dtype=None, merge=merge)
    trained, trainer.model = trainer.model, model
    try:
        yield
    finally:
        trainer.model = trained


def _dtype(trainer: DistillTrainer) -> torch.dtype | None:
    """The number type to save in, where that is narrower than the one that was trained in."""
    name = trainer.distill_args.save_dtype
    if name is None:
        return None
    trained = {weight.dtype for weight in trainer.models.student.model.parameters() if weight.is_floating_point()}
    dtype = DTYPES[name]
    return dtype if any(each.itemsize > dtype.itemsize for each in trained) else None


def _rounded(trainer: DistillTrainer, dtype: torch.dtype, *, merge: bool) -> Any:
    """The student in ``dtype``; None where it would be worse like that."""
    model = final_copy(trainer.models.student, dtype=dtype, merge=merge)
    name = str(dtype).removeprefix("torch.")
    if not all(map(is_finite, model.parameters())):
        logger.warning("abkd: in %s some weights would be infinite, so the student is saved as it was trained", name)
        return None
    if trainer.eval_dataset is not None:
        before, after = _last(trainer), _measure(trainer, model)
        key = "eval_forward_kl" if "eval_forward_kl" in after else "eval_loss"
        if not after[key] <= before[key] + _WORSE * abs(before[key]):
            logger.warning(
                "abkd: in %s the student would be worse on the held-out rows (%s %.4g instead of %.4g), so it is saved "
                "as it was trained",
                name,
                key.removeprefix("eval_"),
                after[key],
                before[key],
            )
            return None
        trainer.log(after)
    logger.info("abkd: the student is saved in %s (save_dtype); it was trained in more precision", name)
    return model.to(dtype)


def _last(trainer: DistillTrainer) -> dict[str, float]:
    """The held-out numbers of the student as it was trained."""
    state = trainer.state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    step = state.best_global_step if best else state.global_step
    for entry in reversed(state.log_history):
        if entry.get("step") == step and "eval_loss" in entry:
            return entry
    return _measure(trainer, None)


def _measure(trainer: DistillTrainer, model: Any) -> dict[str, float]:
    """The held-out numbers of ``model`` in the student's place."""
    student, task = trainer.models.student, trainer.loss
    try:
        if model is not None:
            task.student = student.of(model)
            task.student.classes, task.student.dense_because = student.classes, student.dense_because
        values = held_out_metrics(trainer, trainer.get_eval_dataloader())
    finally:
        task.student = student
    return {f"eval_{name}": value for name, value in values.items()}
