"""Loading two image classifiers that are to match."""

from __future__ import annotations

from typing import Any

import torch

from abkd.config import DistillConfig
from abkd.data.images import Images
from abkd.errors import ConfigError
from abkd.models.vision import Classifier, ImageRows, as_classifier, load_classifier
from abkd.tasks._image_caches import classes_known, load_teacher
from abkd.tasks.base import Models
from abkd.teachers.caches import CacheReader


def load_classifiers(
    model: Any, teachers: list[Any], args: DistillConfig, data: Images | None, cache: CacheReader | None
) -> tuple[Classifier, list[Classifier]]:
    """Student and teachers as classifiers, loaded if they are given by name."""
    known = classes_known(data)
    given = args.teacher_model_init_kwargs or {}
    allowed: Any = args.allow_code or ()
    loaded = [
        load_teacher(each, given, allowed, data) if isinstance(each, str) else as_classifier(each) for each in teachers
    ]
    if not isinstance(model, str):
        return as_classifier(model), loaded
    if not known and loaded:  # unlabelled images: the classes are the teacher's
        known = {"num_classes": ImageRows(loaded[0]).head_rows, "class_names": loaded[0].class_names}
    elif not known and cache is not None:
        known = {"num_classes": cache.head_rows, "class_names": cache.class_names}
    own = args.model_init_kwargs or {}
    student = load_classifier(model, what="model_name_or_path", fresh_head=True, allow_code=allowed, **known, **own)
    return student, loaded


def wanted_side(models: Models) -> int | None:
    """The largest image size among the models' preprocessing, or None."""
    rows: list[object] = [models.student, *getattr(models.teacher, "members", ()), models.teacher]
    rows = [getattr(each, "rows", each) for each in rows]
    sides = [each.classifier.preparation.size for each in rows if isinstance(each, ImageRows)]
    return max((side for side in sides if side), default=None)


def with_head(student: Classifier, peft_config: Any) -> Any:
    """The PEFT config with the head in ``modules_to_save``: it may be new, and adapters would not train it.

    Raises ConfigError if no linear layer outputs the classes.
    """
    if getattr(peft_config, "modules_to_save", None):
        return peft_config
    classes = ImageRows(student).head_rows
    linear = [(name, module) for name, module in student.model.named_modules() if isinstance(module, torch.nn.Linear)]
    heads = [name for name, module in linear if module.out_features == classes]
    if not heads:
        raise ConfigError(
            f"use_peft trains adapters and the head, but no linear layer of the student has {classes} outputs, its "
            "number of classes: in Python, set modules_to_save of the peft_config to the head"
        )
    peft_config.modules_to_save = [heads[-1]]
    return peft_config
