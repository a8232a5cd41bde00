"""Images: classifiers that see the same pixels, each prepared in its own way."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from abkd.config import DistillConfig
from abkd.data import Batch
from abkd.data.images import ImageCollator, ImageDataset, Images, load_images, prepare_images
from abkd.errors import ConfigError
from abkd.models.adapters import with_adapters
from abkd.models.rows import ModelRows
from abkd.models.vision import ImageRows, as_classifier, check_classes, load_classifier, save_classifier
from abkd.ops import Rows, TeacherRows, TopK, teacher_logits
from abkd.teachers import TeacherContext, TeacherReader
from abkd.teachers.caches import CacheReader, EpochImages
from abkd.trainer._image_caches import check_cached_classes, classes_known, load_teacher, open_cache, training_passes
from abkd.trainer._image_checks import check_batches_of_one, check_labels, check_mixed, check_student
from abkd.trainer._modality import Modality, Models, check_apart, check_known, wanted_teachers

if TYPE_CHECKING:
    from abkd.models.vision import Classifier
    from abkd.trainer._trainer import DistillTrainer

logger = logging.getLogger("abkd")

_LOOKED_AT = 1024  # images by which a teacher is judged where nothing is held out


class ImageClassification(Modality):
    """A row is an image."""

    row_noun = "images"
    merges_adapters = True  # an adapter has no place for the names of the classes, nor for how pixels are prepared

    given: Images | None = None
    """What there is to train on, opened once."""

    trained_on: ImageDataset | None = None
    """Beside which the held-out images must stand: their classes, their size."""

    def models(
        self, model: Any, teacher: Any, args: DistillConfig, processing_class: Any, peft_config: Any, train: Any
    ) -> Models:
        self.given = data = images_of(train)
        given, spec = wanted_teachers(teacher, args), cast(Any, args.teacher)
        cache = open_cache(given[0], args, data) if spec.cached and given else None
        student, teachers = self._load(model, [] if cache else given, args, data, cache)
        if peft_config is not None:
            student = student._replace(model=with_adapters(student.model, _with_head(student, peft_config)))
        side = args.image_size or (data.uniform_size() if data is not None else None)
        rows, of_teachers = ImageRows(student, side=side), [ImageRows(each, side=side) for each in teachers]
        for each in of_teachers:
            check_apart(student.model, each.model)
            check_classes(rows, each, None if data is None else data.class_names)
        check_student(rows)
        reader = cache or self._reader(rows, of_teachers, args)
        if reader is not None:
            reader.classes = rows.head_rows
            reader.check()
        if cache is not None:
            check_cached_classes(student, cache, None if data is None else data.class_names)
        check_known(reader, args)
        names = [each for each in given if isinstance(each, str)] if cache else [each.source for each in teachers]
        return Models(rows, reader, None, rows.head_rows, names)

    def data(
        self,
        dataset: Any,
        models: Models,
        args: DistillConfig,
        name: str,
        chunks: Sequence[Sequence[int]] | None = None,
    ) -> ImageDataset | None:
        if dataset is None:
            return None
        if isinstance(dataset, ImageDataset):
            prepared = dataset
        else:
            images, beside = self.opened(dataset, name), self.trained_on
            if beside is not None and beside.class_names is not None and images.class_names is not None:
                images = images.with_classes(beside.class_names)
            side = args.image_size or (None if images.uniform_size() else _wanted_side(models))
            prepared = prepare_data(images, side if beside is None else beside.size, args, name)
        student: Any = models.student
        check_labels(prepared.images, student, args)
        check_mixed(prepared, args)
        if name == "train":
            check_batches_of_one(prepared, student, args)
            self.trained_on = prepared
        return prepared

    def opened(self, dataset: Any, name: str) -> Images:
        """The images of a data set; of that to train on those that ``models`` has opened already."""
        if name == "train" and self.given is not None and not isinstance(dataset, Images):
            return self.given
        return load_images(dataset)

    def teacher_queries(self, train: Any, args: DistillConfig) -> EpochImages:
        return training_passes(train, args)

    def collator(self, models: Models) -> ImageCollator:
        return ImageCollator()

    def max_rows(self, args: DistillConfig) -> int:
        return args.per_device_train_batch_size

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        if batch.targets is None:
            return {}
        found = {"accuracy": _right(student.logits(slice(None)), batch.targets)}
        if teacher is not None:
            found["teacher_accuracy"] = _right(logits_of(teacher), batch.targets)
        return found

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        rows = max(totals["rows"], 1.0)
        names = ("accuracy", "teacher_accuracy", "cross_entropy", "teacher_cross_entropy")
        return {name: totals[name] / rows for name in names if name in totals}

    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        if "teacher_accuracy" not in metrics:
            return
        teacher, student = metrics["teacher_accuracy"], metrics["accuracy"]
        logger.info(
            "abkd: accuracy on the held-out images: teacher %.2f %%, student %.2f %%", 100 * teacher, 100 * student
        )
        if teacher <= student:
            logger.warning(
                "abkd: the teacher (%.2f %%) is no better than the student (%.2f %%) on the held-out images: are its "
                "weights, its normalisation and its classes the right ones?",
                100 * teacher,
                100 * student,
            )

    def before_training(self, trainer: DistillTrainer) -> None:
        dataset: Any = trainer.train_dataset
        if dataset is None:  # transformers says so
            return
        if not dataset.augmentation:
            advice = "[RandomCrop(4), HorizontalFlip()]"
            logger.info("abkd: images are not augmented; photographs gain from --augmentation '%s'", advice)
        if trainer.eval_dataset is None or not trainer.args.eval_on_start:
            self._score_teacher(trainer)

    def describe(self, models: Models, train: Any) -> dict[str, Any]:
        return {"class_names": train.class_names, "image_size": train.size, "labelled": train.labelled}

    def save_extras(self, models: Models, directory: Path, train: Any) -> None:
        student: Any = models.student
        names = student.classifier.class_names or train.class_names
        save_classifier(student.classifier._replace(class_names=names), directory)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _load(
        self, model: Any, teachers: list[Any], args: DistillConfig, data: Images | None, cache: CacheReader | None
    ) -> tuple[Classifier, list[Classifier]]:
        """What is given by name loaded, what is given as it is looked at."""
        known = classes_known(data)
        given = args.teacher_model_init_kwargs or {}
        allowed: Any = args.allow_code or ()
        loaded = [
            load_teacher(each, given, allowed, data) if isinstance(each, str) else as_classifier(each)
            for each in teachers
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

    def _reader(self, student: ModelRows, teachers: list[ImageRows], args: DistillConfig) -> TeacherReader | None:
        spec = args.teacher
        if spec.cached:
            if teachers:
                raise ConfigError(f"no teacher of the task {args.task} is cached: set teacher: Live()")
            return None  # only the labels teach
        if not teachers and spec.needs[0]:
            return None
        return spec.open(
            TeacherContext(student=student, models=teachers, temperature=args.kd_temperature, device=args.device)
        )

    @torch.no_grad()
    def _score_teacher(self, trainer: DistillTrainer) -> None:
        """Say how good the teacher is where no evaluation comes first."""
        dataset: Any = trainer.eval_dataset or trainer.train_dataset
        teacher = trainer.models.teacher
        if teacher is None or not dataset.labelled or isinstance(teacher, CacheReader):
            return  # a cache need not know the images without augmentation
        count, right, size = min(len(dataset), _LOOKED_AT), 0.0, trainer.args.per_device_eval_batch_size
        for start in range(0, count, size):
            examples = [dataset[i] for i in range(start, min(start + size, count))]
            batch = trainer.collator(examples)["batch"].to(trainer.args.device)
            right += _right(logits_of(teacher(batch.teacher)), batch.targets).sum().item()
        which = "held-out" if trainer.eval_dataset is not None else "training"
        logger.info("abkd: the teacher is right on %.2f %% of %d %s images", 100 * right / count, count, which)


def images_of(train: Any) -> Images | None:
    """The images of what a trainer is given to train on."""
    return None if train is None else train.images if isinstance(train, ImageDataset) else load_images(train)


def prepare_data(images: Images, side: int | tuple[int, int] | None, args: DistillConfig, name: str) -> ImageDataset:
    """The checked images of a run, those to train on with its chance.

    Raises DataError where some cannot be used.
    """
    return prepare_images(
        images,
        size=side,
        augmentation=(args.augmentation or ()) if name == "train" else (),
        seed=args.seed if args.data_seed is None else args.data_seed,
        on_bad_row=args.on_bad_row,
        name=name,
    )


def logits_of(teacher: TeacherRows) -> Tensor:
    """``[N, C]`` what orders the teacher's classes; of a ``TopK`` those that are known, the others lowest."""
    if not isinstance(teacher, TopK):
        logits = teacher_logits(teacher, len(teacher), 1.0)(slice(None))
        assert isinstance(logits, Tensor)
        return logits
    lowest = teacher.log_p.new_full((len(teacher), teacher.classes), -torch.inf)
    return lowest.scatter(-1, teacher.ids, teacher.log_p)


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """``[N]`` 1 where the likeliest class is the target."""
    return (logits.argmax(-1) == targets).float()


def _wanted_side(models: Models) -> int | None:
    """The larger of the sides that the models want, where they want one."""
    rows: list[Any] = [models.student, *getattr(models.teacher, "members", ()), models.teacher]
    rows = [getattr(each, "rows", each) for each in rows]
    sides = [each.classifier.preparation.size for each in rows if isinstance(each, ImageRows)]
    return max((side for side in sides if side), default=None)


def _with_head(student: Classifier, peft_config: Any) -> Any:
    """Adapters beside a head that is trained and saved whole: it may be new, and then nothing else would train it.

    Raises ConfigError where no linear layer gives the classes.
    """
    if getattr(peft_config, "modules_to_save", None):
        return peft_config
    classes = ImageRows(student).head_rows
    linear = [(name, module) for name, module in student.model.named_modules() if isinstance(module, torch.nn.Linear)]
    heads = [name for name, module in linear if module.out_features == classes]
    if not heads:
        raise ConfigError(
            f"use_peft trains adapters and the head, but no linear layer of the student gives its {classes} classes: "
            "name the head in modules_to_save of a peft_config, in Python"
        )
    peft_config.modules_to_save = [heads[-1]]
    return peft_config
