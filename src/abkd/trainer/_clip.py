"""CLIP, base to new: a teacher that knows classes by their names, a student that learns prompts from images alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from abkd.config import DistillConfig
from abkd.data import Batch
from abkd.data.images import ImageDataset, base_and_new
from abkd.errors import ConfigError
from abkd.models import base_to_new
from abkd.models.clip import load_clip_pair
from abkd.models.vision import ImageRows, as_classifier, check_classes
from abkd.ops import Rows, TeacherRows
from abkd.trainer._image_checks import check_student
from abkd.trainer._images import ImageClassification, images_of, logits_of
from abkd.trainer._modality import Models, check_known, wanted_teachers

if TYPE_CHECKING:
    from abkd.models.vision import Classifier
    from abkd.trainer._trainer import DistillTrainer

logger = logging.getLogger("abkd")

_OF_TEACHER = "teacher_"


class BaseToNew(ImageClassification):
    """A row is an image against the names of all classes; trained on without labels, measured on both halves of them.

    ``base``: the classes that count as known, the first half (CoOp's rule). ``unlabelled_classes``: "all" where images
    of the others were trained on too (transductive), else "base".
    """

    base: tuple[int, ...] = ()
    unlabelled_classes: str = ""

    def models(
        self, model: Any, teacher: Any, args: DistillConfig, processing_class: Any, peft_config: Any, train: Any
    ) -> Models:
        self.given = images_of(train)
        names = None if self.given is None else self.given.class_names
        if names is None:
            raise ConfigError("CLIP knows a class by its name, and these images have none: name the folders after them")
        if any(term.ce_weight for term in args.objective().all_terms()):
            raise ConfigError("base-to-new distillation sees no labels: set ce_weight: 0.0")
        self.base, _ = base_and_new(names)
        self.unlabelled_classes = args.unlabelled_classes
        given = wanted_teachers(teacher, args)
        student, teachers = self._pair(model, given, args, names)
        rows = ImageRows(student)
        for each in teachers:
            check_classes(student, each, names)
        check_student(rows)
        reader = self._reader(rows, [ImageRows(each) for each in teachers], args)
        if reader is not None:
            reader.classes = rows.head_rows
        check_known(reader, args)
        return Models(rows, reader, None, rows.head_rows, [each.source for each in teachers])

    def data(
        self,
        dataset: Any,
        models: Models,
        args: DistillConfig,
        name: str,
        chunks: Sequence[Sequence[int]] | None = None,
    ) -> ImageDataset | None:
        if dataset is None or name != "train":
            return super().data(dataset, models, args, name)
        if isinstance(dataset, ImageDataset):
            raise ConfigError("which images are trained on is decided here: give the images, not a prepared data set")
        images = self.opened(dataset, name)
        if args.unlabelled_classes == "base":
            if images.labels is None:
                raise ConfigError(
                    "unlabelled_classes: base leaves out the images of new classes, which takes labels to know them; "
                    "these have none"
                )
            images = images.take(i for i, label in enumerate(images.labels) if int(label) in self.base)
        return super().data(images.without_labels(), models, args, name)

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        if batch.targets is None:
            return {}
        found = base_to_new.columns(student.logits(slice(None)), batch.targets, self.base)
        if teacher is not None:
            theirs = base_to_new.columns(logits_of(teacher), batch.targets, self.base)
            found |= {f"{_OF_TEACHER}{name}": column for name, column in theirs.items()}
        return found

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
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

    def before_training(self, trainer: DistillTrainer) -> None:
        seen = trainer.distill_args.unlabelled_classes
        logger.info(
            "abkd: trained on unlabelled images of %s",
            "all classes, the new ones included: results are transductive"
            if seen == "all"
            else "the base classes only",
        )

    def describe(self, models: Models, train: Any) -> dict[str, Any]:
        known = super().describe(models, train)
        return {**known, "base_classes": list(self.base), "unlabelled_classes": self.unlabelled_classes}

    def save_extras(self, models: Models, directory: Path, train: Any) -> None:
        student: Any = models.student
        student.model.save_pretrained(directory, student.classifier.preparation)

    def _pair(
        self, model: Any, given: list[Any], args: DistillConfig, names: Sequence[str]
    ) -> tuple[Classifier, list[Classifier]]:
        """Both models, by name, or as ``load_clip_pair`` made them."""
        if not isinstance(model, str):
            return as_classifier(model), [as_classifier(each) for each in given]
        if len(given) != 1 or not isinstance(given[0], str):
            raise ConfigError(
                "a CLIP student named by a path needs one teacher named by a path, whose class features it takes"
            )
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
