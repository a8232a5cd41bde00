"""The training and held-out images of a recipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from abkd.data.images import (
    Images,
    held_out_beside,
    held_out_splits,
    load_images,
    read_coop_split,
    split_images,
)
from abkd.errors import DataError
from abkd.run_inputs import DataSettings

logger = logging.getLogger("abkd")


def read_images(data: DataSettings, *, seed: int) -> tuple[Images, Images | None]:
    """The training images and the held-out ones (or None); a split of the source is preferred to a fraction of it.

    If both have class names, the classes are in the order of the training images.
    """
    train, held_out = _image_parts(data, seed)
    if held_out is not None and train.class_names is not None and held_out.class_names is not None:
        held_out = held_out.with_classes(train.class_names)
    return train, held_out


def _image_parts(data: DataSettings, seed: int) -> tuple[Images, Images | None]:
    if data.split_file:
        return _coop_parts(data.split_file, data.train_dir)
    source = data.train_file or data.train_dir or data.dataset_name
    train = load_images(source, config=data.dataset_config, split=data.dataset_train_split)
    named: Any = data.eval_file or data.eval_dir  # a single name: lists are refused for images
    if named:
        return train, load_images(named, split=next(iter(held_out_splits(named)[::-1]), "test"))
    if data.dataset_test_split:
        return train, load_images(source, config=data.dataset_config, split=data.dataset_test_split)
    if data.eval_fraction == 0 or len(train) < 2:
        return train, None
    requested = data.dataset_name or data.eval_fraction is not None
    evaluation = None if requested else held_out_beside(str(source))
    if evaluation is not None:
        logger.info(
            "abkd: evaluating on %s (%d images); set eval_fraction to hold out training images instead",
            evaluation.name,
            len(evaluation.images),
        )
        return train, evaluation.images
    rest, held_out = split_images(train, data.share_held_out, seed=seed)
    logger.info(
        "abkd: evaluating on %d of the %d images of %s, which are not trained on", len(held_out), len(train), train.name
    )
    return rest, held_out


def _coop_parts(split_file: str, image_dir: str | None) -> tuple[Images, Images | None]:
    parts = read_coop_split(split_file, image_dir or Path(split_file).parent)
    if "train" not in parts:
        raise DataError(f"{split_file} must have a part 'train' with the training images, got {', '.join(parts)}")
    return parts["train"], parts.get("test", parts.get("val"))


def several_files(data: DataSettings) -> list[str]:
    """One sentence for each list of files where a single archive of images is expected."""
    several = [name for name in ("train_file", "eval_file") if isinstance(getattr(data, name), list)]
    return [f"{name} must be one .npz file of images, got a list; set one file, or train_dir" for name in several]


def describe_images(images: Images) -> str:
    """How many images and classes there are, and the size and class of the first image."""
    height, width, _ = images.image(0).shape
    known = images.class_names or ()
    shown = "unlabelled" if images.labels is None else f"class {images.labels[0]}"
    if images.labels is not None and known:
        shown = f"{known[int(images.labels[0])]!r}"
    classes = f" of {len(known)} classes" if known else ""
    first = f"{images.where(0)}, {height} × {width}, {shown}"
    return f"{len(images)} images{classes}; the first is {first}"
