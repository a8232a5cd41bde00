"""Saving and loading of classifiers: the description next to the weights, so that the classifier can be rebuilt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn

from abkd import imports
from abkd.data.images import MOST_CLASSES
from abkd.errors import ConfigError
from abkd.models.folders import fault_of_file
from abkd.models.pretrained import check_finite, in_short
from abkd.models.vision import _zoos
from abkd.models.vision._load_request import LoadRequest
from abkd.models.vision._preparation import Preparation
from abkd.models.vision._processor import write_processor
from abkd.models.vision._rows import Classifier
from abkd.storage import atomic_write

_OURS = "abkd.json"
_WEIGHTS = "model.safetensors"


def save_classifier(classifier: Classifier, directory: Path | str, *, weights: bool = False) -> None:
    """Write next to a model's weights what :func:`load_classifier` needs to load it.

    A transformers model then needs no abkd: ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load it,
    with its class names. Any other model gets ``abkd.json`` next to ``model.safetensors``.

    Args:
        weights: whether to write the weights too; after training, the trainer has written them.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if hasattr(getattr(classifier.model, "config", None), "id2label"):
        _save_transformers(classifier, directory, weights)
        return
    if weights:
        save_model(classifier.model, str(directory / _WEIGHTS))
    _describe(classifier, directory)


def _save_transformers(classifier: Classifier, directory: Path, weights: bool) -> None:
    model: Any = classifier.model
    if classifier.class_names:
        model.config.id2label = dict(enumerate(classifier.class_names))
        model.config.label2id = {name: number for number, name in enumerate(classifier.class_names)}
    if weights:
        model.save_pretrained(directory)
    elif not hasattr(model, "get_base_model"):  # an adapter's directory describes the adapter
        model.config.save_pretrained(directory)
    write_processor(classifier.preparation, directory)


def _describe(classifier: Classifier, directory: Path) -> None:
    options = dict(classifier.options or {})
    names = classifier.class_names
    values = {
        "name": classifier.source,
        "num_classes": options.pop("num_classes", len(names) if names else None),
        "options": options,
        "class_names": names,
        **vars(classifier.preparation),
    }
    atomic_write(directory / _OURS, json.dumps(values, indent=1, ensure_ascii=False).encode())


def is_ours(name: str) -> bool:
    """Whether a directory holds our own description of a classifier, ``abkd.json``."""
    return (Path(name) / _OURS).is_file()


def check_code(name: str, what: str, allow_code: Sequence[str]) -> None:
    """Refuse a saved directory that names code outside of ``allow_code``; nothing is loaded.

    Raises:
        ConfigError: with the module, and how to allow it.
    """
    if is_ours(name):
        wanted = LoadRequest(what, None, None, False)
        _check_code(_described(Path(name), wanted).source, Path(name), what, allow_code)


def _check_code(source: str, directory: Path, what: str, allow_code: Sequence[str]) -> None:
    if not source.startswith(imports.PREFIX):
        return
    module = source.removeprefix(imports.PREFIX).rpartition(":")[0]
    if not imports.is_allowed(module, allow_code):
        raise ConfigError(
            f"{what}: loading {directory} would run code, {source}, named in its {_OURS}. Code named in a model "
            f"directory only runs if you allow it: set allow_code: [{module}] (--allow_code {module}) if you trust "
            "this module"
        )


def load(directory: Path, wanted: LoadRequest, kwargs: dict[str, Any]) -> Classifier:
    """Load the classifier that :func:`save_classifier` described in ``abkd.json``.

    Raises:
        ConfigError: the original model has no name, its files are damaged, or ``kwargs`` is not empty.
        VocabularyError: it has another number of classes than the data and must keep them.
    """
    if kwargs:
        given = ", ".join(kwargs)
        raise ConfigError(
            f"{wanted.options}: {directory} is loaded as it was saved; only dtype can be set, got {given}"
        )
    saved = _described(directory, wanted)
    _check_code(saved.source, directory, wanted.what, wanted.allow_code)
    described = dict(saved.options or {})
    if saved.source.partition(":")[0] not in _zoos.ZOOS:
        raise ConfigError(
            f"{wanted.what}: {directory} was saved from a module without a name to rebuild it by. Build it in Python, "
            f"load {_WEIGHTS} into it (safetensors.torch.load_model), and pass it instead of the directory"
        )
    count = _count(described.pop("num_classes"))
    if count is not None:
        wanted.refuse_head(str(directory), count)
    names = wanted.own_names or (saved.class_names if wanted.num_classes in (None, count) else None)
    if saved.class_names and wanted.num_classes in (None, count):
        wanted.say_other_classes(str(directory), saved.class_names)
    needed = wanted.num_classes or count
    options = {**described, **({"num_classes": needed} if needed else {})}
    try:
        model = _zoos.rebuilt(saved.source, options)
    except ConfigError as error:
        raise ConfigError(f"{wanted.what}: {directory / _OURS}: {error}") from error
    _fill(model, directory, wanted, new_head=needed != count)
    return Classifier(model, saved.preparation, names, saved.source, options)


def _described(directory: Path, wanted: LoadRequest) -> Classifier:
    """The classifier that ``abkd.json`` describes, without its model."""
    try:
        values = json.loads((directory / _OURS).read_bytes())
        mean, std = (tuple(float(each) for each in values[name]) for name in ("mean", "std"))
        geometry = (values[name] for name in ("size", "resized", "filter"))
        preparation = Preparation(mean, std, *geometry, grey=bool(values.get("grey")))
        options = {**values["options"], "num_classes": _count(values["num_classes"])}
        names = None if values["class_names"] is None else tuple(map(str, values["class_names"]))
        if not isinstance(values["name"], str):
            raise TypeError("its name is not a string")
        return Classifier(nn.Module(), preparation, names, values["name"], options)
    except (OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{wanted.what}: {directory / _OURS} does not describe a classifier: {error!r}") from error


def _count(classes: object) -> int | None:
    if classes is not None and not (isinstance(classes, int) and 1 < classes <= MOST_CLASSES):
        raise ValueError(f"num_classes is {classes!r}")
    return classes


def _fill(model: nn.Module, directory: Path, wanted: LoadRequest, *, new_head: bool) -> None:
    weights = directory / _WEIGHTS
    try:
        if fault := fault_of_file(weights) if weights.is_file() else "the file does not exist":
            raise ConfigError(f"{wanted.what}: cannot load the weights in {weights}: {fault}")
        wanted.fill(model, load_file(weights), str(directory), new_head=new_head)
    except ConfigError:
        raise
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{wanted.what}: cannot load the weights in {weights}: {in_short(error)}") from error
    check_finite(model.state_dict().items(), f"{wanted.what}: {weights}")
