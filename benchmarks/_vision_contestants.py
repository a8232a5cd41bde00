"""The contestants of ``benchmarks.vision``: each trains the same student on the same images in the same order."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abkd import DIST, DKD, AlphaBeta, DistillConfig, Divergence, ForwardKL, Standardized
from abkd import TransformedTeacher as Softened
from benchmarks._textbook import row_losses
from benchmarks._training import Clock, Contestant, Ours, arguments
from benchmarks._vision_pairs import MEAN, STD, Pair

T, POINT = 4.0, AlphaBeta(0.8, 0.3)
SGD: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of student logits, teacher logits and labels."""


def kd(z_student: Tensor, z_teacher: Tensor, labels: Tensor) -> Tensor:
    """CE + 2·T²·KL in the usual implementation."""
    soft = F.kl_div(F.log_softmax(z_student / T, 1), F.softmax(z_teacher / T, 1), reduction="batchmean")
    return F.cross_entropy(z_student, labels) + 2 * T**2 * soft


def alpha_beta(z_student: Tensor, z_teacher: Tensor, labels: Tensor) -> Tensor:
    """CE + 32·D, with powers of probabilities as in the paper's code."""
    return F.cross_entropy(z_student, labels) + 32 * row_losses(z_teacher / T, z_student / T, POINT).mean()


def labels_alone(z_student: Tensor, z_teacher: Tensor, labels: Tensor) -> Tensor:
    """CE."""
    return F.cross_entropy(z_student, labels)


def _bare(loss: Loss, *, teacher: bool = True) -> Callable[[Pair, int, Clock, str], None]:
    """A minimal training loop over images in memory."""

    def run(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
        def step(pixels: Tensor, labels: Tensor) -> Tensor:
            z_teacher = torch.empty(0)
            if teacher:
                with torch.no_grad():
                    z_teacher = pair.teacher(pixels)
            return loss(pair.student(pixels), z_teacher, labels)

        _loop(pair, clock, step)

    return run


def _loop(pair: Pair, clock: Clock, step: Callable[[Tensor, Tensor], Tensor]) -> None:
    pair.student.train()
    if pair.teacher is not None:
        pair.teacher.eval()
    optimizer = torch.optim.SGD(pair.student.parameters(), **SGD)
    clock.start()
    for number, (pixels, labels) in enumerate(pair.batches()):
        value = step(pixels, labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.step(value.item() if number == 0 else None)


def _teacher_forward(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
    pair.teacher.eval()
    clock.start()
    for pixels, _ in pair.batches():
        with torch.no_grad():
            pair.teacher(pixels)
        clock.step()


def _abkd(divergence: Divergence | None, **weights: Any) -> Callable[[Pair, int, Clock, str], None]:
    """Our trainer with the protocol of the CIFAR recipes; without a divergence, on labels only."""

    def run(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
        own = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": SGD["weight_decay"], "max_grad_norm": 0.0}
        protocol = {"learning_rate": SGD["lr"], "warmup_steps": 0, "lr_milestones": [1e6], "decay_all_parameters": True}
        loss = {"kd_weight": 0.0} if divergence is None else {"divergence": divergence}
        values = {
            **arguments(steps, output_dir, pair.batch_size, **own),
            **protocol,
            "ce_weight": 1.0,
            **loss,
            **weights,
        }
        images = {"images": pair.pixels.permute(0, 2, 3, 1).numpy(), "labels": pair.labels.numpy()}
        student: Any = pair.classifier(pair.student)
        teacher: Any = None if divergence is None else pair.classifier(pair.teacher)
        config = DistillConfig(**values, task="image-classification")
        trainer = Ours(student, teacher, config, train_dataset=images, callbacks=[clock])
        trainer.train()

    return run


def _timm(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
    """timm's own task in the bare loop: it runs both models and adds its two losses."""
    tasks: Any = importlib.import_module("timm.task")
    for model in (pair.student, pair.teacher):
        model.pretrained_cfg = {"mean": MEAN, "std": STD}
        model.num_classes, model.in_chans = int(pair.labels.max()) + 1, 3
    task = tasks.LogitDistillationTask(
        pair.student, pair.teacher, criterion=nn.CrossEntropyLoss(), task_loss_weight=1.0, distill_loss_weight=2.0,
        temperature=T, verbose=False,
    )  # fmt: skip
    _loop(pair, clock, lambda pixels, labels: task(pixels, labels)["loss"])


def _torchdistill(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
    """torchdistill's loss in the bare loop."""
    losses: Any = importlib.import_module("torchdistill.losses.mid_level")
    loss = losses.KDLoss("all", "output", "all", "output", temperature=T, alpha=1.0, beta=2.0)

    def step(pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            z_teacher = pair.teacher(pixels)
        return loss({"all": {"output": pair.student(pixels)}}, {"all": {"output": z_teacher}}, labels)

    _loop(pair, clock, step)


_AT_T = {"kd_weight": 32.0, "kd_temperature": T}
_SQUARED = {"kd_temperature": T, "scale_by_temperature_squared": True}
_ALL = (
    Contestant("bare labels", _bare(labels_alone, teacher=False), teacher=False, same_loss="labels"),
    Contestant("teacher forward", _teacher_forward, student=False),
    Contestant("bare KD", _bare(kd), same_loss="KD"),
    Contestant("bare α-β", _bare(alpha_beta), same_loss="α-β"),
    Contestant("abkd labels", _abkd(None), teacher=False, same_loss="labels"),
    Contestant("abkd KD", _abkd(ForwardKL(), **_AT_T), same_loss="KD"),
    Contestant("abkd ABKD", _abkd(POINT, **_AT_T), same_loss="α-β"),
    Contestant("abkd ABDKD", _abkd(DKD(AlphaBeta(1.0, 0.2), nckd_weight=2.0), **_SQUARED)),
    Contestant("abkd ABLSD", _abkd(Standardized(AlphaBeta(0.9, 0.3)), kd_weight=36.0)),
    Contestant("abkd ABTTM", _abkd(Softened(AlphaBeta(0.7, 0.5), power=0.3), kd_weight=7.0)),
    Contestant("abkd DIST", _abkd(DIST(), kd_weight=2.0, **_SQUARED)),
    Contestant("timm KD", _timm, package="timm.task", same_loss="KD"),
    Contestant("torchdistill KD", _torchdistill, package="torchdistill.losses.mid_level", same_loss="KD"),
)
CONTESTANTS = {each.name: each for each in _ALL}
