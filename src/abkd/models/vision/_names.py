"""Loading of classifiers by name or directory, and wrapping of existing modules."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from abkd.errors import ConfigError, VocabularyError
from abkd.models.classes import names_of
from abkd.models.folders import check_model_folder, is_adapter
from abkd.models.pretrained import check_finite, in_short
from abkd.models.remarks import some
from abkd.models.vision import _files, _zoos
from abkd.models.vision._load_request import LoadRequest
from abkd.models.vision._preparation import Preparation
from abkd.models.vision._processor import preparation_of, timm_preparation
from abkd.models.vision._rows import Classifier

logger = logging.getLogger("abkd")

_COMPUTED = re.compile(r"num_batches_tracked$|position_ids$|relative_position_index$|relative_coords_table$")
_HUB = ("cache_dir", "local_files_only", "revision", "token", "trust_remote_code")


def load_classifier(
    name: str,
    *,
    what: str = "model_name_or_path",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    fresh_head: bool = False,
    allow_code: Sequence[str] = (),
    **kwargs: object,
) -> Classifier:
    """Load an image classifier with its preprocessing.

    Args:
        name: ``cifar:resnet20`` and the other networks of :mod:`abkd.models.cifar`, ``timm:NAME``,
            ``torchvision:NAME``, ``python:package.module:function`` (called with ``num_classes``), a directory written
            with :func:`save_classifier`, or anything that ``AutoModelForImageClassification`` loads, by directory or
            hub name.
        what: "model_name_or_path" or "teacher_model_name_or_path", for messages.
        num_classes, class_names: those of the data.
        fresh_head: for a student: a head for other classes is replaced by a new one, with a warning. If False, the
            model must have the data's number of classes.
        allow_code: modules that a directory's ``abkd.json`` may name as ``python:module:function``; without it, loading
            a directory runs no code that the directory names.
        kwargs: for the builder: ``checkpoint`` (cifar), ``pretrained`` and others (timm), ``weights`` (torchvision),
            ``revision`` and others (``from_pretrained``); ``dtype`` for all, by default float32.

    Raises:
        ConfigError: nothing can be loaded, or the model cannot be built.
        VocabularyError: it has another number of classes than the data, and ``fresh_head`` is False.
    """
    names = None if class_names is None else tuple(class_names)
    wanted = LoadRequest(what, num_classes or (len(names) if names else None), names, fresh_head, tuple(allow_code))
    number_type = _zoos.dtype_of(kwargs.pop("dtype", None), wanted)
    kwargs = wanted.plain(kwargs)
    zoo, _, entry = name.partition(":")
    if entry and zoo in _zoos.ZOOS:
        loaded = _zoos.ZOOS[zoo](entry, wanted, kwargs)
    elif entry:
        raise ConfigError(
            f"{what}: expected one of {', '.join(f'{each}:' for each in _zoos.ZOOS)} before {entry!r}, got {zoo!r}"
        )
    elif _files.is_ours(name):
        loaded = _files.load(Path(name), wanted, kwargs)
    elif Path(name).is_file():
        raise ConfigError(
            f"{what} must be an architecture (cifar:resnet20) or a model directory, got the file {name}; to load its "
            f"weights into a cifar: network, set {wanted.options}: {{checkpoint: {name}}}"
        )
    else:
        return _from_transformers(name, wanted, {**kwargs, "dtype": number_type})
    loaded.model.to(number_type)
    return loaded


def as_classifier(model: nn.Module | Classifier) -> Classifier:
    """Wrap an existing model as a classifier, with its preprocessing if it is known.

    For a transformers model it is that of the image processor in the directory or hub repository it was loaded from,
    for a timm model that of its ``pretrained_cfg``. Any other module gets pixels from 0 to 1; pass a
    :class:`Classifier` to specify more.

    Raises:
        ConfigError: it is not a module.
    """
    if isinstance(model, Classifier):
        inside = _unwrapped(model.model)
        return model if inside is model.model else model._replace(model=inside)
    model = _unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a classifier must be a name, a torch module or a Classifier, got {type(model).__name__}")
    config: Any = getattr(model, "config", None)
    if hasattr(config, "id2label"):
        source = str(getattr(model, "name_or_path", "") or "")
        found = preparation_of(source, local_files_only=True) if source else None
        return Classifier(model, found or _by_size(model), names_of(config), source)
    known = getattr(model, "pretrained_cfg", None)
    if isinstance(known, Mapping):
        return Classifier(model, timm_preparation(known))
    return Classifier(model)


def _unwrapped(model: object) -> Any:
    """The module inside a wrapper (DP, DDP, torch.compile), so that its weights are saved under their own names."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(model.module)
    return getattr(model, "_orig_mod", model)  # torch.compile


def _from_transformers(name: str, wanted: LoadRequest, kwargs: dict[str, Any]) -> Classifier:
    from transformers import AutoConfig, AutoModelForImageClassification

    check_model_folder(name, wanted.what)
    if is_adapter(name):
        raise ConfigError(
            f"{wanted.what}: {name} holds an adapter, which is not supported for image classifiers: merge it into its "
            "base model and save that (merge_and_unload, save_pretrained)"
        )
    kwargs = {"trust_remote_code": False, **kwargs}  # if not set, transformers prompts the user
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    try:
        config = AutoConfig.from_pretrained(name, **hub)
        _fit_classes(config, name, wanted)
        model, report = AutoModelForImageClassification.from_pretrained(
            name, config=config, output_loading_info=True, ignore_mismatched_sizes=wanted.fresh_head, **kwargs
        )
        preparation = preparation_of(name, **hub)
    except (ConfigError, VocabularyError):
        raise
    except Exception as error:  # from many libraries; each means that the model cannot be loaded
        raise ConfigError(f"{wanted.what}: cannot load an image classifier from {name!r}: {in_short(error)}") from error
    _judge_weights(model, report, name, wanted)
    check_finite(model.state_dict().items(), f"{wanted.what}: {name!r}")
    if preparation is None:
        preparation = _by_size(model)
        logger.warning(
            "abkd: %s has no preprocessor_config.json, so its preprocessing is unknown: it gets pixels from 0 to 1",
            name,
        )
    return Classifier(model, preparation, names_of(config), name)


def _fit_classes(config: Any, name: str, wanted: LoadRequest) -> None:
    """Set the data's classes in the configuration, if the head may be replaced."""
    count, names = config.num_labels, names_of(config)
    if wanted.num_classes not in (None, count):
        wanted.refuse_head(name, count)
        config.num_labels = wanted.num_classes
    elif names:
        wanted.say_other_classes(name, names)
    if wanted.fresh_head and wanted.class_names:
        config.id2label = dict(enumerate(wanted.class_names))
        config.label2id = {each: number for number, each in enumerate(wanted.class_names)}


def _judge_weights(model: nn.Module, report: Mapping[str, Any], name: str, wanted: LoadRequest) -> None:
    """Warn about new and unused weights; refuse a teacher that has new ones, or fewer layers than its file."""
    own = {key for key in model.state_dict() if not _COMPUTED.search(key)}
    reshaped = [each if isinstance(each, str) else each[0] for each in report["mismatched_keys"]]
    new = sorted(own.intersection([*report["missing_keys"], *reshaped]))
    if new and not wanted.fresh_head:
        raise ConfigError(
            f"{wanted.what}: {name} is not a trained classifier, it has no weights for {some(new)}: "
            "use one that was trained on the classes of the data"
        )
    wanted.say_new(name, new)
    extra = sorted(key for key in report["unexpected_keys"] if not _COMPUTED.search(key))
    alike = {re.sub(r"\d+", "#", key) for key in own}
    layers = [key for key in extra if re.sub(r"\d+", "#", key) in alike]
    if layers and not wanted.fresh_head:
        raise ConfigError(
            f"{wanted.what}: {name} has weights for more layers than its config.json, such as {some(layers)}: it would "
            "not compute what it was trained to; fix its config.json, or download it again"
        )
    if extra:
        logger.warning("abkd: %s: the model does not use these weights of the file: %s", name, some(extra))


def _by_size(model: nn.Module) -> Preparation:
    """For a model without an image processor: its own image size, if its position embeddings allow no other."""
    size = getattr(getattr(model, "config", None), "image_size", None)
    fixed = any("position_embedding" in name for name, _ in model.named_parameters())
    return Preparation(size=size if fixed and isinstance(size, int) else None)
