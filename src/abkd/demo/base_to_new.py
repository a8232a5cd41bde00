"""``abkd demo --clip``: distils a CLIP into a smaller one on unlabelled images, evaluated on base and new classes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkd.demo import _show
from abkd.demo._students import train_students
from abkd.demo.clip import CAPTION, build_small
from abkd.demo.run import claim
from abkd.recipe import Recipe

SETTINGS: dict[str, dict[str, Any]] = {
    "KD": {"divergence": "ForwardKL()"},
    "reverse KL": {"divergence": "ReverseKL()"},
    "ABKD(.6, .5)": {"divergence": "AlphaBeta(0.6, 0.5)"},
}


@dataclass(frozen=True)
class Size:
    """The size of the demo."""

    seeds: tuple[int, ...]
    epochs: int


FULL = Size(seeds=(1, 2, 3), epochs=4)
QUICK = Size(seeds=(1,), epochs=1)


def main(output_dir: Path, *, quick: bool = False, overwrite_output_dir: bool = False) -> dict[str, Any]:
    """Train two small CLIPs on captioned digits, then distil the larger into the smaller without captions and labels.

    ``output_dir`` gets ``clips/`` (both models and the images) and ``students/`` (a sweep: a directory per objective
    and seed).

    Returns:
        The contents of ``students/sweep.json``.

    Raises:
        DataError: scikit-learn is not installed.
        OutputDirError: ``output_dir`` is in use.
    """
    import torch

    began, size = time.monotonic(), QUICK if quick else FULL
    claim(output_dir, overwrite=overwrite_output_dir)
    _show.say("abkd demo: a small CLIP learns from a larger one to classify digits, from images without labels.")
    with _show.stage("training both CLIPs on captioned digits"):
        small = build_small(output_dir / "clips")
    recipe = Recipe.from_dict(
        {
            "task": "zero-shot-image-classification",
            "model_name_or_path": str(small.student),
            "teacher_model_name_or_path": str(small.teacher),
            "train_file": str(small.train_file),
            "eval_file": str(small.held_out_file),
            "output_dir": str(output_dir / "students"),
            "prompt_template": CAPTION,
            "visual_prompt_length": 4,
            "visual_prompt_depth": 2,
            "kd_weight": 10.0,
            "num_train_epochs": size.epochs,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 256,
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "learning_rate": 0.02,
            "save_strategy": "no",
            "use_cpu": not torch.cuda.is_available(),
        }
    )
    return train_students(output_dir, recipe, SETTINGS, size.seeds, began)
