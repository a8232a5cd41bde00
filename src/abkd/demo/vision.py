"""``abkd demo --vision``: distils a digit classifier to a hundredth of its size, with five objectives, five seeds.

Its directory gets ``data/``, ``teacher/`` and ``students/`` (a sweep: a directory per objective and seed).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from abkd.demo.digits import SGD, distil_students, small_networks, write_digits
from abkd.demo.harness import Demo, Size, data_files, recipe, say, stage
from abkd.models.cifar import create
from abkd.recipe import Recipe
from abkd.report.files import Record

SETTINGS: dict[str, dict[str, object]] = {
    "no teacher": {"kd_weight": 0.0, "teacher_model_name_or_path": None},
    "KD (forward KL)": {"divergence": "ForwardKL()"},
    "reverse KL": {"divergence": "ReverseKL()"},
    "ABKD (0.8, 0.3)": {"divergence": "AlphaBeta(0.8, 0.3)"},
    "ABDKD (1.0, 0.2)": {"divergence": "DKD(AlphaBeta(1.0, 0.2), tckd_weight=1.0, nckd_weight=2.0)", "kd_weight": 16.0},
}
"""The objectives of the paper's CIFAR protocol: CE + 32·D at T = 4, where 32 is 2·T²; for ABDKD, CE + T²·D."""

_NETWORK = "resnet14"


def small_student(num_classes: int = 10) -> nn.Module:
    """A network of two convolutions with 8 and 16 filters."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


@dataclass(frozen=True)
class _Size(Size):
    teacher_epochs: int


def _steps(output_dir: Path, size: _Size) -> Record:
    from abkd.run import distill

    sizes = (sum(each.numel() for each in made.parameters()) for made in (create(_NETWORK, 10), small_student()))
    say("abkd demo: a network of {:,} parameters teaches one of {:,} to read scanned digits.".format(*sizes))
    write_digits(output_dir / "data", 0.3)
    teacher = _recipe(
        output_dir / "teacher",
        model_name_or_path=f"cifar:{_NETWORK}",
        num_train_epochs=size.teacher_epochs,
        kd_weight=0.0,
        augmentation="[RandomCrop(padding=1)]",
        learning_rate=0.1,
    )
    student = _recipe(
        output_dir / "students",
        model_name_or_path="python:abkd.demo.vision:small_student",
        teacher_model_name_or_path=str(output_dir / "teacher"),
        num_train_epochs=size.epochs,
        kd_weight=32.0,
        kd_temperature=4.0,
        learning_rate=0.05,
    )
    with small_networks(), stage("training the teacher on the labels"):
        distill(teacher)
    return distil_students(output_dir, student, SETTINGS, size.seeds)


def _recipe(run_dir: Path, **settings: Any) -> Recipe:
    return recipe(
        run_dir,
        data_files(run_dir.parent / "data", "npz"),
        task="image-classification",
        ce_weight=1.0,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=512,
        weight_decay=5e-4,
        decay_all_parameters=True,
        max_grad_norm=0.0,  # clipping would undo the weight of 32 on the divergence
        logging_steps=20,
        **SGD,
        **settings,
    )


DEMO = Demo(
    full=_Size(epochs=10, seeds=(1, 2, 3, 4, 5), teacher_epochs=12),
    quick=_Size(epochs=3, seeds=(1, 2), teacher_epochs=3),
    files=("data/train.npz", "data/held_out.npz", "teacher", "students"),
    steps=_steps,
)
