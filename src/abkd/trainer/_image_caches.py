"""Teachers of images whose rows are stored: what of the images is asked about, and by which name it is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from abkd.config import DistillConfig
from abkd.data.images import ImageDataset
from abkd.models.vision import as_classifier, check_classes
from abkd.teachers import Setting
from abkd.teachers.caches import image_identity
from abkd.teachers.caches._images import Passes
from abkd.teachers.caches._readers import CacheReader
from abkd.trainer._optimizer import epochs
from abkd.trainer._order import TrainOrder, train_order

if TYPE_CHECKING:
    from abkd.models.vision import Classifier


def training_passes(train: ImageDataset, args: DistillConfig) -> Passes:
    """All images of a training as it reads them: with the chance of each epoch, in its order and its batches."""
    seed = args.seed if args.data_seed is None else args.data_seed
    order = train_order(train, batch_size=args.train_batch_size, by_length=False, seed=seed)

    def of(epoch: int) -> TrainOrder:
        order.begin_epoch(epoch)
        return order

    return Passes(train, epochs(args, len(train)), args.train_batch_size, of)


def open_cache(teacher: Any, args: DistillConfig) -> CacheReader:
    """What a teacher, by its name or as it is, was found to say; no model is loaded.

    Raises:
        ConfigError: there is no cache, or it is of something else.
    """
    spec, options = cast(Any, args.teacher), cast(Any, args.teacher_model_init_kwargs)
    known = image_identity(teacher if isinstance(teacher, str) else as_classifier(teacher), options)
    nobody = cast(Any, None)  # who learns from a cache makes no difference to it
    return spec.open(Setting(student=nobody, identity=known, temperature=args.kd_temperature, device=args.device))


def check_cached_classes(student: Classifier, cache: CacheReader, class_names: Sequence[str] | None) -> None:
    """Raise VocabularyError where the classes of the cached teacher, as many as the student's, have other names."""
    check_classes(student, student._replace(class_names=cache.class_names), class_names)
