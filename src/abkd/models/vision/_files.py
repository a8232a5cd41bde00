"""A classifier in a directory: what stands beside its weights so that it is loaded back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from abkd.errors import ConfigError
from abkd.models.vision import _zoos
from abkd.models.vision._preparation import Preparation
from abkd.models.vision._processor import write_processor
from abkd.models.vision._rows import Classifier, ImageRows
from abkd.models.vision._wanted import Wanted
from abkd.storage import write_whole

_OURS = "abkd.json"
_WEIGHTS = "model.safetensors"


def save_classifier(classifier: Classifier, directory: Path | str) -> None:
    """Complete a directory so that :func:`load_classifier` loads it; weights that lie there already are left as they are.

    A transformers model needs no abkd then: ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load it,
    with the names of its classes. Any other model gets ``abkd.json`` beside ``model.safetensors``.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if hasattr(getattr(classifier.model, "config", None), "id2label"):
        _save_transformers(classifier, directory)
    else:
        _save_ours(classifier, directory)


def _save_transformers(classifier: Classifier, directory: Path) -> None:
    model: Any = classifier.model
    if classifier.class_names:
        model.config.id2label = dict(enumerate(classifier.class_names))
        model.config.label2id = {name: number for number, name in enumerate(classifier.class_names)}
    if not any(directory.glob("*.safetensors")):
        model.save_pretrained(directory)
    elif not hasattr(model, "get_base_model"):  # an adapter's directory describes the adapter
        model.config.save_pretrained(directory)
    write_processor(classifier.preparation, directory)


def _save_ours(classifier: Classifier, directory: Path) -> None:
    if not (directory / _WEIGHTS).exists():
        save_model(classifier.model, str(directory / _WEIGHTS))
    preparation = classifier.preparation
    values = {
        "name": classifier.source,
        "options": dict(classifier.options or {}),
        "num_classes": ImageRows(classifier).head_rows,
        "class_names": classifier.class_names,
        "mean": preparation.mean,
        "std": preparation.std,
        "size": preparation.size,
        "resized": preparation.resized,
        "filter": preparation.filter,
    }
    write_whole(directory / _OURS, json.dumps(values, indent=1, ensure_ascii=False).encode())


def is_ours(name: str) -> bool:
    """Whether a directory describes a classifier in our own file."""
    return (Path(name) / _OURS).is_file()


def load(directory: Path, wanted: Wanted, kwargs: dict[str, Any]) -> Classifier:
    """What :func:`save_classifier` described in ``abkd.json``.

    Raises:
        ConfigError: it was made from a model that has no name, its files are broken, or there are options for it.
        VocabularyError: it is for another number of classes than the data and has to keep them.
    """
    if kwargs:
        raise ConfigError(
            f"{wanted.options}: {directory} is loaded as it was saved, it takes dtype, not {', '.join(kwargs)}"
        )
    try:
        values = json.loads((directory / _OURS).read_bytes())
        source, count, names = values["name"], int(values["num_classes"]), values["class_names"]
        mean, std = tuple(values["mean"]), tuple(values["std"])
        preparation = Preparation(mean, std, values["size"], values["resized"], values["filter"])
        options = dict(values["options"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{wanted.what}: {directory / _OURS} does not describe a classifier: {error!r}") from error
    if source.partition(":")[0] not in _zoos.ZOOS:
        raise ConfigError(
            f"{wanted.what}: {directory} was saved from a model that was given in Python and has no name. Build it, "
            f"load {_WEIGHTS} into it (safetensors.torch.load_model), and give it instead of the directory"
        )
    wanted.refuse_head(str(directory), count)
    model = _filled(directory, wanted, source, count, options)
    kept = wanted.num_classes in (None, count)
    class_names = tuple(names) if names and kept and not wanted.fresh_head else wanted.class_names
    return Classifier(model, preparation, class_names, source, options)


def _filled(directory: Path, wanted: Wanted, source: str, count: int, options: dict[str, Any]) -> nn.Module:
    model = _zoos.architecture(source, wanted.num_classes or count, options)
    try:
        if wanted.num_classes in (None, count):
            load_model(model, str(directory / _WEIGHTS))
        else:
            wanted.fill(model, load_file(directory / _WEIGHTS), str(directory))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{wanted.what}: {directory / _WEIGHTS} does not hold the weights of {source}: {error}"
        ) from error
    return model
