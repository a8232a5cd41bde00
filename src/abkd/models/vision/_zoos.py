"""Networks by the names of three collections: ours of CIFAR networks, timm's and torchvision's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from abkd.errors import AbkdError, ConfigError
from abkd.models import cifar
from abkd.models.vision._preparation import Preparation
from abkd.models.vision._processor import timm_preparation
from abkd.models.vision._rows import Classifier
from abkd.models.vision._wanted import Wanted

_CIFAR = Preparation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))  # mean and deviation of CIFAR-100's pixels
_USUAL = {"cifar": 100, "timm": 1000, "torchvision": 1000}  # classes, where nobody says how many


def dtype_of(given: Any, wanted: Wanted) -> torch.dtype:
    """A dtype by its name or itself; float32 where none is given.

    Raises ConfigError where it is none.
    """
    found = torch.float32 if given is None else getattr(torch, str(given).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"{wanted.options}: dtype is float32, bfloat16 or float16, but came {given!r}")
    return found


def architecture(source: str, num_classes: int | None, options: Mapping[str, Any]) -> nn.Module:
    """The network that a saved classifier was made from, with weights that are yet to be loaded.

    Raises:
        ConfigError: there is none of that name, or the collection is not installed.
    """
    zoo, _, name = source.partition(":")
    count = num_classes or _USUAL[zoo]
    if zoo == "cifar":
        return cifar.create(name, count)
    if zoo == "timm":
        return _built(_module("timm").create_model, name, pretrained=False, num_classes=count, **options)
    return _built(_module("torchvision.models").get_model, name, weights=None, num_classes=count, **options)


def _from_cifar(name: str, wanted: Wanted, kwargs: dict[str, Any]) -> Classifier:
    checkpoint = kwargs.pop("checkpoint", None)
    if kwargs:
        raise ConfigError(f"{wanted.options}: cifar:{name} takes checkpoint and dtype, not {', '.join(kwargs)}")
    if checkpoint is None and not wanted.fresh_head:
        raise ConfigError(
            f"{wanted.what}: cifar:{name} has no weights of its own; name the file that holds them "
            f"({wanted.options}: {{checkpoint: resnet56.pth}}), or a directory that a run has saved"
        )
    model = architecture(f"cifar:{name}", wanted.num_classes, {})
    if checkpoint is not None:
        cifar.load_checkpoint(model, checkpoint)
    return Classifier(model, _CIFAR, wanted.class_names if wanted.fresh_head else None, f"cifar:{name}")


def _from_timm(name: str, wanted: Wanted, kwargs: dict[str, Any]) -> Classifier:
    source, pretrained = f"timm:{name}", bool(kwargs.pop("pretrained", True))
    options, checkpoint = kwargs, kwargs.pop("checkpoint_path", "")
    if not pretrained or wanted.fresh_head:
        options = {**kwargs, "num_classes": wanted.num_classes or _USUAL["timm"]}
    create = _module("timm").create_model
    model: Any = _built(create, name, pretrained=pretrained, checkpoint_path=checkpoint, **options)
    wanted.refuse_head(source, model.num_classes)
    known = model.pretrained_cfg
    if pretrained and known.get("num_classes") not in (None, model.num_classes):
        wanted.say_new(source, [str(known.get("classifier", "head"))])
    names = wanted.class_names if wanted.fresh_head else None
    return Classifier(model, timm_preparation(known), names, source, kwargs)


def _from_torchvision(name: str, wanted: Wanted, kwargs: dict[str, Any]) -> Classifier:
    source, models = f"torchvision:{name}", _module("torchvision.models")
    which = kwargs.pop("weights", "DEFAULT")
    if which is None:
        model = architecture(source, wanted.num_classes, kwargs)
        return Classifier(model, _IMAGENET, wanted.class_names if wanted.fresh_head else None, source, kwargs)
    weights: Any = _built(lambda: models.get_model_weights(name)[which])
    model = _built(models.get_model, name, weights=weights, **kwargs)
    names = tuple(weights.meta["categories"])
    if wanted.num_classes not in (None, len(names)):
        wanted.refuse_head(source, len(names))
        trained, model = model, architecture(source, wanted.num_classes, kwargs)
        wanted.fill(model, trained.state_dict(), source)
    if wanted.fresh_head and wanted.class_names:
        names = wanted.class_names
    return Classifier(model, _torchvision_preparation(weights.transforms()), names, source, kwargs)


_IMAGENET = Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _torchvision_preparation(transforms: Any) -> Preparation:
    """What the transforms that belong to weights say: resize, cut out the middle, normalise."""
    size, resized = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    kind = "bicubic" if "bicubic" in str(transforms.interpolation).lower() else "bilinear"
    return Preparation(tuple(transforms.mean), tuple(transforms.std), size, resized, kind)


ZOOS: dict[str, Callable[[str, Wanted, dict[str, Any]], Classifier]] = {
    "cifar": _from_cifar,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}
"""What may stand before the colon of a name."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision that was built for another torch says the latter
        package = name.partition(".")[0]
        raise ConfigError(
            f"{package}: names need {package}, which cannot be imported ({error}): pip install {package}"
        ) from error


def _built(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return build(*args, **options)
    except AbkdError:
        raise
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot build {' '.join(map(str, args))} with {options}: {error}") from error
