"""``abkd demo --vision``: distils a digit classifier to a hundredth of its size, with five objectives, five seeds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from abkd.demo import _show
from abkd.demo._students import train_students, write_arrays
from abkd.demo.run import claim
from abkd.models.cifar import create
from abkd.recipe import Recipe

SETTINGS: dict[str, dict[str, Any]] = {
    "no teacher": {"kd_weight": 0.0, "teacher_model_name_or_path": None},
    "KD (forward KL)": {"divergence": "ForwardKL()"},
    "reverse KL": {"divergence": "ReverseKL()"},
    "ABKD (0.8, 0.3)": {"divergence": "AlphaBeta(0.8, 0.3)"},
    "ABDKD (1.0, 0.2)": {"divergence": "DKD(AlphaBeta(1.0, 0.2), tckd_weight=1.0, nckd_weight=2.0)", "kd_weight": 16.0},
}
"""The objectives of the paper's CIFAR protocol: CE + 32·D at T = 4, where 32 is 2·T²; for ABDKD, CE + T²·D."""


@dataclass(frozen=True)
class Size:
    """The size of the demo."""

    seeds: tuple[int, ...]
    epochs: int
    teacher_epochs: int


FULL = Size(seeds=(1, 2, 3, 4, 5), epochs=10, teacher_epochs=12)
QUICK = Size(seeds=(1, 2), epochs=3, teacher_epochs=3)
_HELD_OUT = 0.3
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


def main(output_dir: Path, *, quick: bool = False, overwrite_output_dir: bool = False) -> dict[str, Any]:
    """Train a teacher on scikit-learn's digits, distil it with every objective and seed, write a table and a report.

    ``output_dir`` gets ``data/``, ``teacher/`` and ``students/`` (a sweep: a directory per objective and seed).

    Returns:
        The contents of ``students/sweep.json``.

    Raises:
        ConfigError: scikit-learn is not installed.
        OutputDirError: ``output_dir`` is in use.
    """
    from abkd.run import distill

    began, size = time.monotonic(), QUICK if quick else FULL
    claim(output_dir, overwrite=overwrite_output_dir)
    sizes = (sum(each.numel() for each in made.parameters()) for made in (create(_NETWORK, 10), small_student()))
    _show.say("abkd demo: a network of {:,} parameters teaches one of {:,} to read scanned digits.".format(*sizes))
    _write_data(output_dir / "data")
    teacher = Recipe.from_dict(_recipe(output_dir, output_dir / "teacher", size.teacher_epochs) | _TEACHER)
    student = Recipe.from_dict(_recipe(output_dir, output_dir / "students", size.epochs) | _student(output_dir))
    with _show.small_networks(), _show.stage("training the teacher on the labels"):
        distill(teacher)
    return train_students(output_dir, student, SETTINGS, size.seeds, began)


_TEACHER = {
    "model_name_or_path": f"cifar:{_NETWORK}",
    "kd_weight": 0.0,
    "ce_weight": 1.0,
    "augmentation": "[RandomCrop(padding=1)]",
    "learning_rate": 0.1,
}


def _student(output_dir: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": "python:abkd.demo.vision:small_student",
        "teacher_model_name_or_path": str(output_dir / "teacher"),
        "ce_weight": 1.0,
        "kd_weight": 32.0,
        "kd_temperature": 4.0,
        "learning_rate": 0.05,
    }


def _recipe(output_dir: Path, run_dir: Path, epochs: int) -> dict[str, Any]:
    import torch

    return {
        "task": "image-classification",
        "train_file": str(output_dir / "data" / "train.npz"),
        "eval_file": str(output_dir / "data" / "held_out.npz"),
        "output_dir": str(run_dir),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 512,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "weight_decay": 5e-4,
        "decay_all_parameters": True,
        "max_grad_norm": 0.0,  # clipping would undo the weight of 32 on the divergence
        "save_strategy": "no",
        "logging_steps": 20,
        "use_cpu": not torch.cuda.is_available(),
    }


def _write_data(directory: Path) -> None:
    """Write the digits as arrays, like a user's own data: for training, and held out."""
    from abkd.data.images import load_images, split_images

    directory.mkdir(parents=True)
    parts = split_images(load_images("digits"), _HELD_OUT, seed=0)
    for name, part in zip(("train", "held_out"), parts, strict=True):
        write_arrays(part, directory / f"{name}.npz")
