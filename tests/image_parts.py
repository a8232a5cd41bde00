"""Helpers for image runs: images, small real networks, a one-line trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from abkd import DistillConfig, DistillTrainer
from abkd.models.cifar import create
from abkd.models.vision import Classifier, Preparation

CLASSES = 5
CHANCE = "[RandomCrop(padding=1), HorizontalFlip(), Mixup(alpha=0.4)]"
NAMES = ("ant", "bee", "cat", "dog", "eel")


def pictures(count: int = 12, side: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Noise with a spot whose position gives the class."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        image = draw.integers(0, 120, (side, side, 3), dtype=np.uint8)
        image[i % CLASSES : i % CLASSES + 3, :3] += 120
        rows.append({"image": image, "label": i % CLASSES})
    return rows


def unlabelled(count: int = 12) -> list[dict[str, Any]]:
    """The same images without labels."""
    return [{"image": row["image"]} for row in pictures(count)]


class Plain(nn.Module):
    """A custom network, without batch statistics."""

    def __init__(self, width: int = 6, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.GroupNorm(2, width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.fc = nn.Linear(4 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


def plain(seed: int, **options: Any) -> Plain:
    torch.manual_seed(seed)
    return Plain(**options)


def dropping(seed: int) -> Plain:
    """With batch statistics and dropout, which reads the random numbers of the run."""
    return plain(seed, norm=True, dropout=0.2)


def cifar(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return create("resnet8", CLASSES)


def vit(seed: int) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        hidden_dropout_prob=0.1,
    )
    return ViTForImageClassification(config)


def resnet(seed: int) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES, layer_type="basic")
    return ResNetForImageClassification(config)


def image_teacher(seed: int = 100) -> Classifier:
    """A confident teacher, with batch statistics and its own preprocessing."""
    model = plain(seed, width=8, norm=True)
    with torch.no_grad():
        model.fc.weight.mul_(8)
    return Classifier(model, Preparation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))


def image_trainer(
    path: Path, model: Any = None, *, data: Any = None, teach: Any = None, callbacks: Any = (), **options: Any
) -> DistillTrainer:
    """Six steps on twelve images, in batches of two."""
    held_out, adapters = options.pop("eval_dataset", None), options.pop("peft_config", None)
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 3e-3,
        **({} if "lr_milestones" in options else {"lr_scheduler_type": "linear"}),
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 3,
        "ce_weight": 0.5,
        **options,
    }
    return DistillTrainer(
        plain(0) if model is None else model,
        image_teacher() if teach is None else teach,
        DistillConfig(output_dir=str(path), task="image-classification", **settings),
        train_dataset=pictures() if data is None else data,
        eval_dataset=held_out,
        peft_config=adapters,
        callbacks=callbacks,
    )
