"""What the two image demos share: scanned digits as files, and a sweep of students over objectives and seeds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from abkd.demo.harness import data_files, stage, write_result
from abkd.recipe import Recipe
from abkd.report.files import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abkd.data.images import Images

SGD = {"optim": "sgd", "optim_args": "momentum=0.9"}


def write_digits(directory: Path, held_out_share: float) -> tuple[Images, Images]:
    """Split scikit-learn's digits, and write both parts as arrays, like a user's own data; returns the parts.

    Raises:
        DataError: scikit-learn is not installed.
    """
    from abkd.data.images import load_images, split_images

    parts = split_images(load_images("digits"), held_out_share, seed=0)
    directory.mkdir(parents=True, exist_ok=True)
    for images, file in zip(parts, data_files(directory, "npz"), strict=True):
        labels, classes = np.asarray(images.labels), np.asarray(images.class_names)
        np.savez(file, images=pixels_of(images), labels=labels, classes=classes)
    return parts


def pixels_of(images: Images) -> NDArray[np.uint8]:
    """All images, which have one size, as uint8 ``[N, H, W, C]``."""
    return np.stack([images.image(index) for index in range(len(images))])


@contextmanager
def small_networks() -> Iterator[None]:
    """One thread, because these networks are too small to gain from more; no log lines of the single runs."""
    threads, logger = torch.get_num_threads(), logging.getLogger("abkd")
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


def distil_students(
    output_dir: Path, recipe: Recipe, objectives: Mapping[str, Mapping[str, object]], seeds: Sequence[int]
) -> Record:
    """Distil a student with every objective and seed, with the sweep's report as the demo's; returns ``sweep.json``."""
    from abkd.sweep import sweep_settings

    runs, students = len(objectives) * len(seeds), Path(recipe.output_dir)
    with small_networks(), stage(f"{runs} students: {len(objectives)} objectives, {len(seeds)} seeds") as bar:
        found = sweep_settings(recipe, objectives, seeds, progress=bar)
    write_result({"sweep": f"{students.name}/sweep.json"}, output_dir, students / "report.html")
    return found
