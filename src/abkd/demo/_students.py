"""Code shared by the two vision demos: digits as arrays, and training of several students."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abkd.demo import _show
from abkd.recipe import Recipe


def train_students(
    output_dir: Path, recipe: Recipe, settings: Mapping[str, Any], seeds: Sequence[int], began: float
) -> dict[str, Any]:
    """Train a student for each setting and seed in ``students/`` and copy the report; returns ``sweep.json``.

    ``began``: start of the demo by the monotonic clock.
    """
    from abkd.sweep import sweep_settings

    runs = len(settings) * len(seeds)
    with (
        _show.small_networks(),
        _show.stage(f"{runs} students: {len(settings)} objectives, {len(seeds)} seeds") as bar,
    ):
        found = sweep_settings(recipe, settings, seeds, progress=bar)
    shutil.copy(output_dir / "students" / "report.html", output_dir / "report.html")
    (output_dir / "demo.json").write_text(json.dumps({"sweep": "students/sweep.json"}), encoding="utf-8")
    _show.say(f"Total time: {(time.monotonic() - began) / 60:.1f} minutes.")
    return found


def pixels_of(images: Any) -> np.ndarray[Any, Any]:
    """All images, which have one size, as uint8 ``[N, H, W, C]``."""
    return np.stack([images.image(index) for index in range(len(images))])


def write_arrays(images: Any, file: Path) -> None:
    """Write images, labels and class names as arrays, like a user's own data."""
    arrays: dict[str, Any] = {"labels": images.labels, "classes": images.class_names}
    np.savez(file, images=pixels_of(images), **arrays)
