"""Conversion between a transformers image processor and a :class:`Preparation`, in both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from abkd.errors import ConfigError
from abkd.models.vision._preparation import Filter, Preparation
from abkd.storage import atomic_write

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

_RESAMPLE: dict[int, Filter] = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}  # Pillow's values; 1: Lanczos
_OF_TIMM: dict[str, Filter] = {"nearest": "nearest", "bilinear": "bilinear"}
_SMALL = 384  # below this size ConvNeXt's processor takes a center crop
_TOLERANCE = 0.03  # of the full range: the processor's resizing rounds to integers, ours does not


def preparation_of(name_or_path: str, **hub: object) -> Preparation | None:
    """The preprocessing of a model's image processor; None if the model has no image processor file.

    The settings are verified on a test image, except for a processor that cannot be imported.

    Args:
        hub: ``revision``, ``token``, … as for ``from_pretrained``.

    Raises:
        ConfigError: it does something that a :class:`Preparation` cannot.
    """
    from transformers import AutoImageProcessor

    hub = {"trust_remote_code": False, **hub}
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, **{"trust_remote_code": False, **hub})
    except (ImportError, OSError, ValueError):
        values = _settings(name_or_path, **hub)
        return None if values is None else _read(values, name_or_path)
    return _verified(processor, _read(processor.to_dict(), name_or_path), name_or_path)


def _settings(name_or_path: str, **hub: object) -> dict[str, Any] | None:
    """The settings in an image processor's file."""
    from transformers import ImageProcessingMixin

    try:
        return ImageProcessingMixin.get_image_processor_dict(name_or_path, **hub)[0]
    except (OSError, ValueError):
        return None


def _read(values: Mapping[str, Any], name: str) -> Preparation:
    given = values.get("pretrained_cfg")
    if isinstance(given, Mapping):
        return timm_preparation(given)
    try:
        (size, resized), resample = _geometry(values), values.get("resample")
        mean, std = (0.0,) * 3, (1.0,) * 3
        if values.get("do_normalize", True):
            mean, std = (tuple(float(each) for each in values[key]) for key in ("image_mean", "image_std"))
        return Preparation(mean, std, size, resized, _RESAMPLE.get(3 if resample is None else int(resample), "bicubic"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error!r} in the settings of its image processor; {_WAY_OUT}") from error


def _geometry(values: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """``size`` and ``resized``."""
    if not values.get("do_resize", True):
        return None, None
    side = _side(values["size"])
    share = values.get("crop_pct") or (224 / 256 if "Levit" in str(values.get("image_processor_type")) else None)
    if values.get("do_center_crop"):
        return _side(values["crop_size"]), int(side / share) if share else side
    return side, int(side / share) if share and side < _SMALL else None


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        sides = {int(size[key]) for key in ("height", "width", "shortest_edge") if size.get(key)}
        if len(sides) != 1:
            raise ValueError(f"images of size {dict(size)}")
        return sides.pop()
    return int(size)


def timm_preparation(values: Mapping[str, Any]) -> Preparation:
    """The preprocessing in timm's ``pretrained_cfg``: ``input_size``, ``crop_pct``, ``mean``, ``std``, …"""
    size, share = int(values["input_size"][-1]), float(values.get("crop_pct") or 0.875)
    whole = share == 1.0 and values.get("crop_mode") == "squash"
    mean, std = (tuple(float(each) for each in values[key]) for key in ("mean", "std"))
    found = _OF_TIMM.get(str(values.get("interpolation")), "bicubic")
    return Preparation(mean, std, size, None if whole else int(size / share), found)


# -- verification ------------------------------------------------------------------------------------------------


def _verified(processor: BaseImageProcessor, read: Preparation, name: str) -> Preparation:
    """``read`` if it gives the processor's own output, else ``read`` with a mean and std fitted to that output."""
    image = _test_image()
    wanted = _processed(processor, image)
    for candidate in (read, _fitted(processor, read)):
        if candidate is not None and _gap(candidate, image, wanted) < _TOLERANCE:
            return candidate
    raise ConfigError(
        f"{name}: its image processor ({type(processor).__name__}) does more than resizing, center cropping and "
        f"normalising by a mean and std; {_WAY_OUT}"
    )


_WAY_OUT = (
    "in Python, write a module that does this before it calls the model, and pass "
    "Classifier(module, Preparation(mean, std, size))"
)


def _test_image() -> np.ndarray:
    """``[96, 96, 3]``: a gradient in another direction in each channel."""
    up = np.linspace(0.0, 255.0, 96)
    across, down = np.meshgrid(up, up)
    return np.stack([across, down, (across + 255.0 - down) / 2], -1).round().astype(np.uint8)


def _processed(processor: BaseImageProcessor, image: np.ndarray) -> Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"][0].float()


def _gap(preparation: Preparation, image: np.ndarray, wanted: Tensor) -> float:
    """The largest difference, as a share of the pixel range."""
    got = preparation(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    if got.shape != wanted.shape:
        return float("inf")
    return ((got - wanted) * torch.tensor(preparation.std)[:, None, None]).abs().max().item()


def _fitted(processor: BaseImageProcessor, preparation: Preparation) -> Preparation | None:
    """Mean and std computed from the outputs for a black and a white image; None if these are equal."""
    black, white = (
        _processed(processor, np.full((96, 96, 3), value, np.uint8)).double().mean((-1, -2)) for value in (0, 255)
    )
    std = 1.0 / (white - black)
    if not (std.isfinite() & (std > 0)).all():
        return None
    return replace(preparation, mean=tuple((-black * std).tolist()), std=tuple(std.tolist()))


# -- writing -----------------------------------------------------------------------------------------------------


def write_processor(preparation: Preparation, directory: Path) -> None:
    """Write ``preprocessor_config.json``, so that transformers' image processor does the same."""
    numbers = {"nearest": 0, "bilinear": 2, "bicubic": 3}
    values: dict[str, object] = {
        "do_resize": preparation.size is not None,
        "resample": numbers[preparation.filter],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
    }
    side = preparation.size or 224
    square = {"height": side, "width": side}
    if preparation.resized is None:
        values |= {"image_processor_type": "ViTImageProcessor", "size": square}
    else:
        middle = {"do_center_crop": True, "size": {"shortest_edge": preparation.resized}, "crop_size": square}
        values |= {"image_processor_type": "BitImageProcessor", "do_convert_rgb": True, **middle}
    atomic_write(directory / "preprocessor_config.json", json.dumps(values, indent=2).encode())
