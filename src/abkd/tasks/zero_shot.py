"""Base-to-new distillation of CLIP: a teacher that knows class names, a student that learns prompts without labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from abkd.config import DistillConfig
from abkd.data import Batch
from abkd.data.images import ImageDataset, base_and_new, load_images
from abkd.errors import ConfigError
from abkd.metrics import METRICS
from abkd.models import base_to_new
from abkd.models.clip import load_clip_pair
from abkd.models.vision import Classifier, ImageRows, as_classifier, check_classes
from abkd.ops import Rows, TeacherRows
from abkd.tasks._checks import check_full_distribution, given_teachers, open_reader
from abkd.tasks._classification import logits_of
from abkd.tasks._image_checks import check_student
from abkd.tasks._model_names import check_code
from abkd.tasks.base import Given, Models
from abkd.tasks.image_classification import ImageClassification, OpenImages, images_of

logger = logging.getLogger("abkd")

_OF_TEACHER = "teacher_"


class ZeroShotImageClassification(ImageClassification):
    """A row is an image compared with all class names; trained without labels, evaluated on base and new classes."""

    name = "zero-shot-image-classification"
    fields = ImageClassification.fields - {"use_peft"} | {"prompt_template", "visual_prompt_length"}
    fields |= {"visual_prompt_depth", "unlabelled_classes", "split_file"}
    metrics = tuple(METRICS[name] for name in ("base_accuracy", "new_accuracy", "harmonic_mean"))
    data_hint = "no images: set train_dir (with split_file, or one folder per class), train_file (.npz) or dataset_name"
    cacheable = False
    check_name = staticmethod(check_code)  # directories and hub names only

    def open(self, given: Given, args: DistillConfig) -> OpenBaseToNew:
        images = images_of(given.train)
        known = images_of(given.held_out) if images is None else images
        names = None if known is None else known.class_names
        if names is None:
            raise ConfigError("CLIP needs class names, and these images have none: name the folders after the classes")
        if any(term.ce_weight for term in args.objective().row_terms()):
            raise ConfigError("base-to-new distillation uses no labels: set ce_weight: 0.0")
        student, teachers = _load_pair(given.student, given_teachers(given.teacher, args), args, names)
        rows = ImageRows(student)
        for each in teachers:
            check_classes(student, each, names)
        check_student(rows)
        reader = open_reader(rows, [ImageRows(each) for each in teachers], args)
        if reader is not None:
            reader.classes = rows.head_rows
        check_full_distribution(reader, args)
        models = Models(rows, reader, None, rows.head_rows, [each.source for each in teachers])
        base, _ = base_and_new(names)
        return OpenBaseToNew(args, models, base=base).with_data(given, images)


@dataclass
class OpenBaseToNew(OpenImages):
    """Two CLIP models, and images of all classes.

    ``base``: the base classes, the first half of all classes (as in CoOp).
    """

    base: tuple[int, ...] = ()

    def checked(self, dataset: Any, name: str) -> ImageDataset:
        if name != "train":
            return super().checked(dataset, name)
        if isinstance(dataset, ImageDataset):
            raise ConfigError("expected images, got a prepared dataset: this task chooses the training images itself")
        images = load_images(dataset)
        if self.args.unlabelled_classes == "base":
            if images.labels is None:
                raise ConfigError(
                    "unlabelled_classes: base needs labels to leave out the images of new classes, got images without "
                    "labels; set unlabelled_classes: all"
                )
            images = images.take(i for i, label in enumerate(images.labels) if int(label) in self.base)
        return super().checked(images.without_labels(), name)

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        if batch.targets is None:
            return {}
        found = base_to_new.columns(student.logits(slice(None)), batch.targets, self.base)
        if teacher is not None:
            theirs = base_to_new.columns(logits_of(teacher), batch.targets, self.base)
            found |= {f"{_OF_TEACHER}{name}": column for name, column in theirs.items()}
        return found

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        found = base_to_new.metrics(totals) if "base_rows" in totals else {}
        theirs = {name.removeprefix(_OF_TEACHER): x for name, x in totals.items() if name.startswith(_OF_TEACHER)}
        if "base_rows" in theirs:
            found |= {f"{_OF_TEACHER}{name}": value for name, value in base_to_new.metrics(theirs).items()}
        return found

    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        names = ("base_accuracy", "new_accuracy", "harmonic_mean")
        for who, prefix in (("teacher", _OF_TEACHER), ("student", "")):
            if all(f"{prefix}{name}" in metrics for name in names):
                scores = (100 * metrics[f"{prefix}{name}"] for name in names)
                logger.info("abkd: %s, held out: base %.2f %%, new %.2f %%, harmonic mean %.2f %%", who, *scores)

    def before_training(self, *, sharded: bool, writes: bool, evaluates_first: bool) -> None:
        logger.info(
            "abkd: training on unlabelled images of %s",
            "all classes, including the new ones: results are transductive"
            if self.args.unlabelled_classes == "all"
            else "the base classes only",
        )

    def describe(self) -> dict[str, object]:
        seen = self.args.unlabelled_classes
        return {**super().describe(), "base_classes": list(self.base), "unlabelled_classes": seen}

    def save_extras(self, directory: Path) -> None:
        student: Any = self.models.student
        student.model.save_pretrained(directory, student.classifier.preparation)


def _load_pair(
    model: Any, given: list[Any], args: DistillConfig, names: Sequence[str]
) -> tuple[Classifier, list[Classifier]]:
    """Both models, loaded by name or already loaded by ``load_clip_pair``."""
    if not isinstance(model, str):
        return as_classifier(model), [as_classifier(each) for each in given]
    if len(given) != 1 or not isinstance(given[0], str):
        raise ConfigError("a CLIP student given by name needs one teacher given by name, whose class features it uses")
    of_teacher = args.teacher_model_init_kwargs
    of_student = args.model_init_kwargs
    teacher, student = load_clip_pair(
        given[0],
        model,
        names,
        template=args.prompt_template,
        prompt_length=args.visual_prompt_length,
        prompt_depth=args.visual_prompt_depth,
        teacher_options=of_teacher,
        student_options=of_student,
    )
    return student, [teacher]
