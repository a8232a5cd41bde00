"""Helpers for CLIP runs: two barely trained CLIPs, some digits, and a one-line trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from abkd import DistillConfig, DistillTrainer
from abkd.data.images import load_images
from abkd.demo.clip import CAPTION, Build, Small, train_clip


def small_clips(directory: Path) -> Small:
    """Two barely trained CLIPs (made within a second), and some of the digits."""
    digits = load_images("digits")
    images = np.stack([digits.image(i) for i in range(120)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    labels, names = torch.from_numpy(digits.labels[:120]), digits.class_names
    for name, width in (("teacher", 32), ("student", 16)):
        train_clip(directory / name, Build(width, 2, width, epochs=2), pixels, labels, names)
    for name, part in (("train", slice(0, 60)), ("held_out", slice(60, 120))):
        np.savez(directory / f"{name}.npz", images=images[part], labels=digits.labels[:120][part], classes=names)
    return Small(*(directory / name for name in ("teacher", "student", "train.npz", "held_out.npz")))


def clip_trainer(path: Path, small: Small, *, callbacks=(), **options) -> DistillTrainer:
    settings = {
        "task": "zero-shot-image-classification",
        "prompt_template": CAPTION,
        "visual_prompt_depth": 2,
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "divergence": "AlphaBeta(0.6, 0.5)",
        **options,
    }
    return DistillTrainer(
        str(small.student),
        str(small.teacher),
        DistillConfig(output_dir=str(path), **settings),
        train_dataset=small.train_file,
        eval_dataset=small.held_out_file,
        callbacks=callbacks,
    )
