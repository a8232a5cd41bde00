"""Image classification: classifiers of any framework, and rows that are images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

from abkd.config import DistillConfig
from abkd.data.images import ImageCollator, ImageDataset, Images, load_images, prepare_images
from abkd.models.adapters import with_adapters
from abkd.models.loading import placed
from abkd.models.vision import ImageRows, check_classes, save_classifier
from abkd.run_inputs import DataSettings, ModelSettings
from abkd.settings import Settings
from abkd.tasks._checks import (
    check_full_distribution,
    check_labels,
    check_separate,
    given_teachers,
    open_reader,
)
from abkd.tasks._classification import OF_CLASSES, OpenClassification
from abkd.tasks._image_caches import (
    check_cached_classes,
    identifying,
    load_teacher,
    open_cache,
    training_passes,
)
from abkd.tasks._image_checks import check_batches_of_one, check_mixed, check_student
from abkd.tasks._image_data import describe_images, read_images, several_files
from abkd.tasks._image_models import load_classifiers, wanted_side, with_head
from abkd.tasks._model_names import check_name, unknown_model
from abkd.tasks.base import CacheJob, Given, Models, Task
from abkd.teachers.caches import EpochImages, image_identity

logger = logging.getLogger("abkd")


class ImageClassification(Task):
    """A row is an image."""

    name = "image-classification"
    row_noun = "images"
    unit = "image"
    fields = frozenset({"augmentation", "image_size", "train_dir", "eval_dir", "use_peft"})
    metrics = OF_CLASSES
    data_hint = "no images: set train_dir (one folder per class), train_file (.npz) or dataset_name (such as digits)"
    merges_adapters = True  # an adapter cannot store the class names or the preprocessing
    finds_held_out = True
    check_name = staticmethod(check_name)

    def model_problem(self, name: str, field: str, allow_code: Sequence[str]) -> str | None:
        problem = super().model_problem(name, field, allow_code)
        return problem or unknown_model(self.check_name, name, field, allow_code)

    def data_problems(self, data: DataSettings) -> list[str]:
        return several_files(data)

    def read(self, data: DataSettings, settings: Settings, *, seed: int) -> tuple[Images, Images | None]:
        return read_images(data, seed=seed)

    def sample(self, models: ModelSettings, data: DataSettings, settings: Settings) -> Iterator[str]:
        for name, images in zip(("trained on", "held out"), self.read(data, settings, seed=0), strict=True):
            if images is not None:
                yield f"{name}: {describe_images(images)}"

    def open(self, given: Given, args: DistillConfig) -> OpenImages:
        images = images_of(given.train)
        teachers, spec = given_teachers(given.teacher, args), cast(Any, args.teacher)
        cache = open_cache(teachers[0], args, images) if spec.cached and teachers else None
        student, loaded = load_classifiers(given.student, [] if cache else teachers, args, images, cache)
        if given.peft_config is not None:
            student = student._replace(model=with_adapters(student.model, with_head(student, given.peft_config)))
        side = args.image_size or (images.uniform_size() if images is not None else None)
        rows, of_teachers = ImageRows(student, side=side), [ImageRows(each, side=side) for each in loaded]
        for each in of_teachers:
            check_separate(student.model, each.model)
            check_classes(rows, each, None if images is None else images.class_names)
        check_student(rows)
        reader = cache or open_reader(rows, of_teachers, args)
        if reader is not None:
            reader.classes = rows.head_rows
            reader.check()
        if cache is not None:
            check_cached_classes(student, cache, None if images is None else images.class_names)
        check_full_distribution(reader, args)
        names = [each for each in teachers if isinstance(each, str)] if cache else [each.source for each in loaded]
        return OpenImages(args, Models(rows, reader, None, rows.head_rows, names)).with_data(given, images)

    def cache_job(self, given: Given, args: DistillConfig, teacher: str) -> CacheJob:
        options, images = dict(args.teacher_model_init_kwargs or {}), images_of(given.train)
        assert images is not None  # a recipe names some
        train = training_passes(prepare_data(images, args.image_size, args, "train"), args)
        passes = [train]
        if given.held_out is not None:
            other = prepare_data(given.held_out, args.image_size, args, "eval")
            passes.append(EpochImages(other, batch_size=args.per_device_eval_batch_size))
        identified, allowed = identifying(teacher, options, args.allow_code or (), images), args.allow_code or ()

        def load() -> ImageRows:
            made = load_teacher(teacher, options, allowed, images) if isinstance(identified, str) else identified
            check_classes(made, made, images.class_names)
            placed(made.model, args.device).eval().requires_grad_(False)
            return ImageRows(made)

        return CacheJob(
            examples=passes,
            load=load,
            identity=image_identity(identified, options),
            about={"data": {each.dataset.name: each.dataset.fingerprint for each in passes}, "epochs": train.epochs},
            workers=args.dataloader_num_workers,
        )


class OpenImages(OpenClassification):
    """Two image classifiers, and images as both read them."""

    rows = "images"

    def with_data(self, given: Given, images: Images | None) -> Self:
        """Set the images of a run (``images``: the training images, already opened), and return itself."""
        if given.train is not None:
            own = isinstance(given.train, Images | ImageDataset)
            self.train = self.checked(given.train if own else images, "train")
        if given.held_out is not None:
            self.held_out = self.prepare(given.held_out)
        return self

    def checked(self, dataset: Any, name: str) -> ImageDataset:
        """The checked images of a dataset; held-out ones with the classes and the size of the training images."""
        if isinstance(dataset, ImageDataset):
            prepared = dataset
        else:
            images, train = load_images(dataset), cast(ImageDataset | None, self.train)
            if train is not None and train.class_names is not None and images.class_names is not None:
                images = images.with_classes(train.class_names)
            side = self.args.image_size or (None if images.uniform_size() else wanted_side(self.models))
            prepared = prepare_data(images, side if train is None else train.size, self.args, name)
        student, images = cast(ImageRows, self.models.student), prepared.images
        check_labels(images.labels, images.name, student.head_rows, self.args)
        check_mixed(prepared, self.args)
        if name == "train":
            check_batches_of_one(prepared, student, self.args)
        return prepared

    def prepare(self, dataset: Any) -> ImageDataset:
        return self.checked(dataset, "eval")

    def teacher_queries(self) -> EpochImages:
        return training_passes(cast(ImageDataset, self.train), self.args)

    @property
    def collate(self) -> ImageCollator:
        return ImageCollator()

    def before_training(self, *, sharded: bool, writes: bool, evaluates_first: bool) -> None:
        train = self.train
        if not isinstance(train, ImageDataset):  # transformers raises
            return
        if not train.augmentation:
            advice = "[RandomCrop(4), HorizontalFlip()]"
            logger.info("abkd: images are not augmented; for photographs use --augmentation '%s'", advice)
        if not evaluates_first:
            self.score_teacher()

    def describe(self) -> dict[str, object]:
        train = self.train
        assert isinstance(train, ImageDataset)
        return {"class_names": train.class_names, "image_size": train.size, "labelled": train.labelled}

    def save_extras(self, directory: Path) -> None:
        student, train = cast(ImageRows, self.models.student), cast(ImageDataset | None, self.train)
        names = student.classifier.class_names or (None if train is None else train.class_names)
        save_classifier(student.classifier._replace(class_names=names), directory)


def images_of(train: Any) -> Images | None:
    """The images of a training set, opened if necessary."""
    return None if train is None else train.images if isinstance(train, ImageDataset) else load_images(train)


def prepare_data(images: Images, side: int | tuple[int, int] | None, args: DistillConfig, name: str) -> ImageDataset:
    """The checked images of a run; training images are augmented with its seed.

    Raises DataError for images that cannot be used.
    """
    return prepare_images(
        images,
        size=side,
        augmentation=(args.augmentation or ()) if name == "train" else (),
        seed=args.seed if args.data_seed is None else args.data_seed,
        on_bad_row=args.on_bad_row,
        name=name,
    )
