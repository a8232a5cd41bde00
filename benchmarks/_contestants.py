"""The contestants' implementations: forward and backward in one call, through each library's own functions."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks._cases import FORWARD, REVERSE, Case, Contestant
from benchmarks._inputs import Inputs
from benchmarks._textbook import cross_entropy, row_losses

Call = Callable[[], Tensor]  # runs forward and backward, sets the inputs' gradients, returns the loss
_BETA = {FORWARD: 0.0, REVERSE: 1.0}  # how TRL and Liger name the two ends; Jensen-Shannon is 0.5

# Number of float32 tensors [rows at once, classes at once] that exist at the peak, as measured.
_DENSE = {True: 7, False: 10}  # by whether it is a KL divergence
_TILED = 12
_CHUNKED, _CHUNKED_COMPILED = {True: 7, False: 13}, 5


def build(contestant: Contestant, inputs: Inputs) -> Call:
    """The call of this contestant.

    Raises:
        ImportError: its library, or a part of it that is needed here, is not installed.
    """
    makers = {"floor": _floor, "abkd": _abkd, "textbook": _textbook, "trl": _trl, "liger": _liger}
    return makers[contestant.kind](inputs, contestant)


def needed_bytes(contestant: Contestant, case: Case) -> int:
    """An estimate of a call's memory above inputs and outputs; 0 for ours, which has a memory budget."""
    rows, classes = case.rows, case.classes
    if contestant.kind == "floor":
        return 2 * 4 * round(rows * case.weighted) * classes
    plain = case.divergence in (FORWARD, REVERSE)
    if contestant.kind == "textbook":
        return 4 * _DENSE[plain] * rows * classes
    if contestant.kind == "trl":
        most_rows, most_classes = contestant.setting or (4096, 32_768)
        return 4 * _TILED * min(rows, most_rows) * min(classes, most_classes)
    if contestant.kind == "liger":
        chunk = contestant.setting[0] if contestant.setting else 1024
        at_once = -(-rows // max(1, rows // chunk))  # it cuts into rows // chunk equal parts
        tensors = _CHUNKED_COMPILED if contestant.compiled else _CHUNKED[plain]
        return 4 * (tensors * at_once + case.student) * classes
    return 0


def _floor(inputs: Inputs, _: Contestant) -> Call:
    kept = inputs.row_weight.nonzero().squeeze(-1)
    hidden, weight = inputs.hidden.detach()[kept], inputs.weight.detach()
    teacher_hidden, teacher_weight = inputs.teacher_hidden[kept], inputs.teacher_weight

    def call() -> Tensor:
        student = hidden @ weight.T
        teacher = teacher_hidden @ teacher_weight.T
        to_hidden, to_weight = student @ weight, student.T @ hidden
        return to_hidden[0, 0] + to_weight[0, 0] + teacher[0, 0]

    return call


def _abkd(inputs: Inputs, contestant: Contestant) -> Call:
    from abkd.ops import Head, Projected, linear_divergence

    case = inputs.case
    options: dict[str, Any] = {"memory_budget_mb": float(contestant.setting[0])} if contestant.setting else {}
    if case.weighted < 1:
        options["row_weight"] = inputs.row_weight
    if case.ce_weight:
        options |= {"targets": inputs.targets, "ce_weight": case.ce_weight}
    teacher = Projected(inputs.teacher_hidden, Head(inputs.teacher_weight))

    def call() -> Tensor:
        student = Projected(inputs.hidden, Head(inputs.weight))
        loss = linear_divergence(student, teacher, inputs.divergence, **options).loss
        loss.backward()
        return loss.detach()

    return call


def _textbook(inputs: Inputs, _: Contestant) -> Call:
    case, total = inputs.case, inputs.row_weight.sum()

    def call() -> Tensor:
        student = (inputs.hidden @ inputs.weight.T).float()
        with torch.no_grad():
            teacher = (inputs.teacher_hidden @ inputs.teacher_weight.T).float()
        row = row_losses(teacher, student, inputs.divergence)
        if case.ce_weight:
            row = row + case.ce_weight * cross_entropy(student, inputs.targets)
        loss = (row * inputs.row_weight).sum() / total
        loss.backward()
        return loss.detach()

    return call


def _trl(inputs: Inputs, contestant: Contestant) -> Call:
    """The loss of TRL's distillation trainer, with the mask that the trainer passes; one sequence holds all rows."""
    kernel: Any = import_module("trl.kernels.chunked_divergence")
    divergence_loss: Any = import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss
    beta = _BETA.get(inputs.case.divergence, 0.5)
    default = kernel.TOKEN_CHUNK_SIZE, kernel.VOCAB_CHUNK_SIZE
    mask = inputs.row_weight[None]

    def call() -> Tensor:
        kernel.TOKEN_CHUNK_SIZE, kernel.VOCAB_CHUNK_SIZE = contestant.setting or default
        try:
            loss, *_ = divergence_loss(
                inputs.hidden[None], inputs.teacher_hidden[None], inputs.weight, inputs.teacher_weight, mask, beta
            )
            loss.backward()
        finally:
            kernel.TOKEN_CHUNK_SIZE, kernel.VOCAB_CHUNK_SIZE = default
        return loss.detach()

    return call


def _liger(inputs: Inputs, contestant: Contestant) -> Call:
    """Liger's module, with the labels of rows without weight set to its ignore index."""
    loss_of: Any = import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
    options: dict[str, Any] = {"chunk_size": contestant.setting[0]} if contestant.setting else {}
    module = loss_of(
        weight_hard_loss=inputs.case.ce_weight,
        weight_soft_loss=1.0,
        beta=_BETA.get(inputs.case.divergence, 0.5),
        compiled=contestant.compiled,
        **options,
    )
    labels = inputs.targets.masked_fill(inputs.row_weight == 0, module.ignore_index)

    def call() -> Tensor:
        loss = module(inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, labels)
        loss.backward()
        return loss.detach()

    return call
