"""Networks by name: our CIFAR networks, timm's, torchvision's, and those that a user's own function builds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from abkd import imports
from abkd.errors import ConfigError
from abkd.models import cifar
from abkd.models.pretrained import check_finite
from abkd.models.vision._load_request import LoadRequest
from abkd.models.vision._preparation import Preparation
from abkd.models.vision._processor import timm_preparation
from abkd.models.vision._rows import Classifier

_CIFAR = Preparation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))  # mean and std of CIFAR-100's pixels
_IMAGENET = Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_USUAL = {"cifar": 100, "timm": 1000, "torchvision": 1000}  # the default number of classes
_FETCHING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "weights", "weights_backbone"}
"""Options that load weights from elsewhere: not allowed in a saved directory."""


def dtype_of(given: object, wanted: LoadRequest) -> torch.dtype:
    """A dtype, given as such or by its name; by default float32.

    Raises ConfigError if it is not a floating-point dtype.
    """
    found = torch.float32 if given is None else getattr(torch, str(given).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"{wanted.options}: dtype must be float32, bfloat16 or float16, got {given!r}")
    return found


def architecture(source: str, options: Mapping[str, object]) -> nn.Module:
    """Build the network of that name, without trained weights.

    Args:
        options: ``num_classes``, and any other options of its builder.

    Raises:
        ConfigError: there is none of that name, or the library is not installed.
    """
    zoo, _, name = source.partition(":")
    if zoo == "cifar":
        return _built(source, cifar.create, name, **options)
    if zoo == "python":
        return _own(name, options).model
    if zoo == "timm":
        return _built(source, _module("timm").create_model, name, pretrained=False, **options)
    return _built(source, _torchvision_builder(name), weights=None, **options)


def rebuilt(source: str, options: Mapping[str, object]) -> nn.Module:
    """:func:`architecture` for a name and options from a file: nothing is downloaded, no other code is run.

    Raises:
        ConfigError: they would load more than an architecture.
    """
    zoo, _, name = source.partition(":")
    if fetching := sorted(_FETCHING & options.keys()):
        raise ConfigError(f"{source} was saved with {', '.join(fetching)}, which would load weights from elsewhere")
    if zoo == "timm" and not _module("timm").is_model(name):  # timm would download hf-hub:NAME from the hub
        raise ConfigError(f"{source}: timm has no architecture of this name")
    if zoo == "python":
        module, _, function = name.rpartition(":")
        if not imports.defined_in(imports.attribute(module, function), module):
            raise ConfigError(f"{source}: {function} must be defined in {module}, not imported into it")
    return architecture(source, options)


def _from_cifar(name: str, wanted: LoadRequest, kwargs: dict[str, Any]) -> Classifier:
    source, checkpoint = f"cifar:{name}", kwargs.pop("checkpoint", None)
    if kwargs:
        raise ConfigError(f"{wanted.options}: {source} takes checkpoint and dtype, got {', '.join(kwargs)}")
    if checkpoint is None and not wanted.fresh_head:
        raise ConfigError(
            f"{wanted.what}: {source} has no pretrained weights; set a file of weights "
            f"({wanted.options}: {{checkpoint: {name}.pth}}), or use a directory that a run has saved"
        )
    options = {"num_classes": wanted.num_classes or _USUAL["cifar"]}
    model = architecture(source, options)
    if checkpoint is not None:
        cifar.load_checkpoint(model, checkpoint)
        check_finite(model.state_dict().items(), f"{wanted.what}: {checkpoint}")
    return Classifier(model, _CIFAR, wanted.own_names, source, options)


def _from_timm(name: str, wanted: LoadRequest, kwargs: dict[str, Any]) -> Classifier:
    """Pretrained weights, unless ``pretrained=False``; timm itself replaces the head for another number of classes."""
    source, trained = f"timm:{name}", bool(kwargs.pop("pretrained", True))
    start = {"pretrained": trained, "checkpoint_path": kwargs.pop("checkpoint_path", "")}
    if wanted.fresh_head or not trained:
        kwargs = {"num_classes": wanted.num_classes or _USUAL["timm"], **kwargs}
    model = _built(source, _module("timm").create_model, name, **start, **kwargs)
    wanted.refuse_head(source, model.num_classes)
    known = model.pretrained_cfg
    if trained and known.get("num_classes") not in (None, model.num_classes):
        wanted.say_new(source, [str(known.get("classifier"))])
    options = {**kwargs, "num_classes": model.num_classes}
    return Classifier(model, timm_preparation(known), wanted.own_names, source, options)


def _from_torchvision(name: str, wanted: LoadRequest, kwargs: dict[str, Any]) -> Classifier:
    """Pretrained weights, by default ``weights="DEFAULT"``; None for random ones."""
    source, which = f"torchvision:{name}", kwargs.pop("weights", "DEFAULT")
    models = _module("torchvision.models")
    if which is None:
        options = {**kwargs, "num_classes": wanted.num_classes or _USUAL["torchvision"]}
        return Classifier(architecture(source, options), _IMAGENET, wanted.own_names, source, options)
    weights = _built(source, lambda: models.get_model_weights(name)[which])
    names = tuple(weights.meta["categories"])
    options = {**kwargs, "num_classes": wanted.num_classes or len(names)}
    wanted.refuse_head(source, len(names))
    model = _built(source, _torchvision_builder(name), weights=weights, **kwargs)
    if options["num_classes"] != len(names):
        trained, model = model, architecture(source, options)
        wanted.fill(model, trained.state_dict(), source, new_head=True)
    return Classifier(model, _of_torchvision(weights.transforms()), wanted.own_names or names, source, options)


def _from_python(name: str, wanted: LoadRequest, kwargs: dict[str, Any]) -> Classifier:
    """The result of a user's function, ``python:package.module:function``, called with ``num_classes``."""
    options = {**kwargs, **({"num_classes": wanted.num_classes} if wanted.num_classes else {})}
    made = _own(name, options)
    return made._replace(source=f"python:{name}", options=options, class_names=made.class_names or wanted.own_names)


def _own(name: str, options: Mapping[str, object]) -> Classifier:
    """Call a user's function, which returns a module, or a :class:`Classifier` with its preprocessing."""
    code = imports.CodeName.read(f"python:{name}")
    if code is None:
        raise ConfigError(f"expected python:package.module:function, got python:{name}")
    try:
        build = imports.attribute(code.module, code.name)
    except ConfigError as error:
        raise ConfigError(f"python:{name} cannot be imported: {error}") from error
    made = _built(f"python:{name}", build, **options)
    if not isinstance(made, Classifier | nn.Module):
        raise ConfigError(f"python:{name} must return a torch module or a Classifier, got {made!r:.200}")
    made = made if isinstance(made, Classifier) else Classifier(made)
    if any(weight.is_meta for weight in made.model.parameters()):
        raise ConfigError(f"python:{name} returned a module with weights on the meta device: initialise them")
    return made


def _torchvision_builder(name: str) -> Callable[..., Any]:
    """The builder of a classifier: torchvision's other models return boxes or maps, and download a backbone."""
    models = _module("torchvision.models")
    if name.lower() not in models.list_models(module=models):
        raise ConfigError(f"torchvision:{name}: torchvision.models has no classifier of this name")
    return models.get_model_builder(name)


def _of_torchvision(transforms: Any) -> Preparation:
    """The preprocessing in the transforms of torchvision's weights: resize, center crop, normalise."""
    size, resized = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    kind = "bicubic" if "bicubic" in str(transforms.interpolation).lower() else "bilinear"
    return Preparation(tuple(transforms.mean), tuple(transforms.std), size, resized, kind)


ZOOS: dict[str, Callable[[str, LoadRequest, dict[str, Any]], Classifier]] = {
    "cifar": _from_cifar,
    "python": _from_python,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}
"""Loaders by the prefix of a name."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        zoo = name.partition(".")[0]
        raise ConfigError(f"names with {zoo}: need {zoo}; pip install {zoo} (import failed: {error})") from error


def _built(source: str, build: Callable[..., Any], /, *args: object, **options: object) -> Any:
    try:
        return build(*args, **options)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # third-party code can raise anything
        raise ConfigError(f"cannot build {source} with {options}: {type(error).__name__}: {error}") from error
