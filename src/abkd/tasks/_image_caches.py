"""Teachers of images whose rows are stored: what of the images is asked about, and by which name it is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from abkd.config import DistillConfig
from abkd.data.images import ImageDataset, Images
from abkd.data.order import TrainOrder, train_order
from abkd.models.vision import as_classifier, check_classes, load_classifier
from abkd.teachers import TeacherContext
from abkd.teachers.caches import CacheReader, EpochImages, image_identity
from abkd.training_arguments import epochs

if TYPE_CHECKING:
    from abkd.models.vision import Classifier


def training_passes(train: ImageDataset, args: DistillConfig) -> EpochImages:
    """All images of a training as it reads them: with the chance of each epoch, in its order and its batches."""
    seed = args.seed if args.data_seed is None else args.data_seed
    order = train_order(train, batch_size=args.train_batch_size, by_length=False, seed=seed)

    def of(epoch: int) -> TrainOrder:
        order.begin_epoch(epoch)
        return order

    return EpochImages(train, epochs(args, len(train)), args.train_batch_size, of)


def classes_known(data: Images | None) -> dict[str, Any]:
    """What ``load_classifier`` is told of the classes of the data; nothing where they are not known."""
    if data is None or data.num_classes is None:
        return {}
    return {"num_classes": data.num_classes, "class_names": data.class_names}


def load_teacher(name: str, options: Mapping[str, Any], allow_code: Sequence[str], data: Images | None) -> Classifier:
    """A teacher by its name; a student begins with the same weights whoever teaches it."""
    with torch.random.fork_rng([]):
        return load_classifier(
            name, what="teacher_model_name_or_path", allow_code=allow_code, **classes_known(data), **options
        )


def identifying(
    teacher: str | nn.Module | Classifier, options: Mapping[str, Any], allow_code: Sequence[str], data: Images | None
) -> str | Classifier:
    """What tells a teacher from others: its name, or itself where it has none, or a function of the user's builds it.

    Such a function may read anything, so that the same name may be another teacher tomorrow.
    """
    if not isinstance(teacher, str):
        return as_classifier(teacher)
    if not teacher.startswith("python:"):
        return teacher
    return load_teacher(teacher, options, allow_code, data)


def open_cache(teacher: Any, args: DistillConfig, data: Images | None) -> CacheReader:
    """What a teacher, by its name or as it is, was found to say; only one of the user's own code is loaded.

    Raises:
        ConfigError: there is no cache, or it is of something else.
    """
    spec, options, allowed = (
        cast(Any, each) for each in (args.teacher, args.teacher_model_init_kwargs or {}, args.allow_code or ())
    )
    known = image_identity(identifying(teacher, options, allowed, data), options)
    nobody = cast(Any, None)  # who learns from a cache makes no difference to it
    return spec.open(
        TeacherContext(student=nobody, identity=known, temperature=args.kd_temperature, device=args.device)
    )


def check_cached_classes(student: Classifier, cache: CacheReader, class_names: Sequence[str] | None) -> None:
    """Raise VocabularyError where the classes of the cached teacher, as many as the student's, have other names."""
    check_classes(student, student._replace(class_names=cache.class_names), class_names)
