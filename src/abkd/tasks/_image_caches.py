"""Cached teachers of images: the images that a cache covers, and the identity by which it is found."""

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
    """All images of a training run as it reads them: augmented for each epoch, in its order and batches."""
    seed = args.seed if args.data_seed is None else args.data_seed
    order = train_order(train, batch_size=args.train_batch_size, by_length=False, seed=seed)

    def of(epoch: int) -> TrainOrder:
        order.begin_epoch(epoch)
        return order

    return EpochImages(train, epochs(args, len(train)), args.train_batch_size, of)


def classes_known(data: Images | None) -> dict[str, Any]:
    """Arguments of ``load_classifier`` for the classes of the data; empty if they are unknown."""
    if data is None or data.num_classes is None:
        return {}
    return {"num_classes": data.num_classes, "class_names": data.class_names}


def load_teacher(name: str, options: Mapping[str, Any], allow_code: Sequence[str], data: Images | None) -> Classifier:
    """Load a teacher by name, without changing the random state that the student is initialized from."""
    with torch.random.fork_rng([]):
        return load_classifier(
            name, what="teacher_model_name_or_path", allow_code=allow_code, **classes_known(data), **options
        )


def identifying(
    teacher: str | nn.Module | Classifier, options: Mapping[str, Any], allow_code: Sequence[str], data: Images | None
) -> str | Classifier:
    """The identity of a teacher: its name, or the model if it has no name or is built by a user's function.

    Such a function may read anything, so the same name may later be another teacher.
    """
    if not isinstance(teacher, str):
        return as_classifier(teacher)
    if not teacher.startswith("python:"):
        return teacher
    return load_teacher(teacher, options, allow_code, data)


def open_cache(teacher: str | nn.Module | Classifier, args: DistillConfig, data: Images | None) -> CacheReader:
    """Open the cached predictions of a teacher; a teacher given by name is loaded only if user code builds it.

    Raises:
        ConfigError: there is no cache, or it does not match.
    """
    spec, options, allowed = (
        cast(Any, each) for each in (args.teacher, args.teacher_model_init_kwargs or {}, args.allow_code or ())
    )
    known = image_identity(identifying(teacher, options, allowed, data), options)
    no_student = cast(Any, None)  # a cache does not depend on the student
    return spec.open(
        TeacherContext(student=no_student, identity=known, temperature=args.kd_temperature, device=args.device)
    )


def check_cached_classes(student: Classifier, cache: CacheReader, class_names: Sequence[str] | None) -> None:
    """Raise VocabularyError if the cached teacher and the student have different class names."""
    check_classes(student, student._replace(class_names=cache.class_names), class_names)
