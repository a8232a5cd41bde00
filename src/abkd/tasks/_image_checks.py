"""Checks before training that an image classifier, its data and the settings fit each other."""

from __future__ import annotations

import math

from abkd.config import DistillConfig
from abkd.data.images import ImageDataset
from abkd.data.images.augmentation import Mixup
from abkd.errors import ConfigError
from abkd.models.saving import check_trainable
from abkd.models.vision import ImageRows
from abkd.tasks._checks import described


def check_student(student: ImageRows) -> None:
    """Raise ConfigError if the student returns no logits, or cannot be trained."""
    student.check()
    check_trainable(student.model, student.name)
    if not student.has_gradient():
        raise ConfigError(
            f"the logits of {student.name} depend on none of its trainable parameters, so nothing would be learned; is "
            "there a detach() or no_grad() in its forward?"
        )


def check_batches_of_one(data: ImageDataset, student: ImageRows, args: DistillConfig) -> None:
    """Raise ConfigError if an epoch has a batch of one image, and the student's batch normalisation needs more."""
    size, batch = args.train_batch_size, args.train_batch_size * args.world_size
    left = len(data) % batch  # images in the last batch, which fills the processes in order of rank
    alone = any(left - rank * size <= 1 for rank in range(args.world_size)) if left else False
    reached = args.max_steps <= 0 or args.max_steps * args.gradient_accumulation_steps >= math.ceil(len(data) / batch)
    if (size > 1 and (not alone or args.dataloader_drop_last or not reached)) or student.learns_from_one(data.size):
        return
    found = (
        f"the last batch of an epoch is one image ({len(data)} in batches of {batch})"
        if size > 1
        else "a batch is one image"
    )
    raise ConfigError(
        f"{found}, and batch normalisation in {student.name} cannot be trained on one: set "
        + ("dataloader_drop_last: true, or " if size > 1 else "")
        + "another per_device_train_batch_size"
    )


def check_mixed(data: ImageDataset, args: DistillConfig) -> None:
    """Raise ConfigError if a divergence over the batch axis would get a mixed image twice, once per label."""
    if not data.labelled or not any(isinstance(step, Mixup) for step in data.augmentation):
        return
    comparing = [term for term in args.objective().all_terms() if term.needs().batch_axis]
    if comparing:
        raise ConfigError(
            f"{described(comparing[0])} compares the images of a batch, and with Mixup a labelled image is in it "
            "twice, once per label: remove Mixup, or use images without labels"
        )
