"""Loading of transformers models by name or directory, whatever their head; each failure is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from abkd.errors import ConfigError
from abkd.models.finite import is_finite
from abkd.models.folders import check_model_folder, stored_tensors
from abkd.models.remarks import logger, some

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_OTHER_FILES = {"gguf_file", "subfolder", "variant"}  # options that choose among several models in a directory
_FOR_CONFIG = ("cache_dir", "gguf_file", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
_LONGEST = 300  # characters of another library's message


class Kind(NamedTuple):
    """What a model is loaded as.

    ``auto``: the class in transformers, such as ``AutoModelForCausalLM``. ``noun``: its name in messages, with an
    article. ``unused``: names of tensors that a checkpoint may hold in addition to such a model.
    """

    auto: str
    noun: str
    unused: re.Pattern[str]

    @property
    def loader(self) -> Any:
        """The class in transformers."""
        import transformers

        return getattr(transformers, self.auto)


def load_pretrained(
    kind: Kind, name: str, config: PretrainedConfig, *, what: str, student: bool = False, **kwargs: object
) -> PreTrainedModel:
    """Load a model of this kind, and check that its checkpoint fits it.

    Args:
        config: its configuration (:func:`read_config`).
        what: "model_name_or_path" or "teacher_model_name_or_path", for messages.
        student: missing and unused weights give a warning instead of an error.
        kwargs: for ``from_pretrained``. Code in a model directory is not run unless ``trust_remote_code`` is set.

    Raises:
        ConfigError: it cannot be loaded, or weights are missing.
    """
    try:
        model, report = kind.loader.from_pretrained(
            name, output_loading_info=True, **{"trust_remote_code": False, **kwargs}
        )
    except Exception as error:  # from many libraries; each means that the model cannot be loaded
        raise ConfigError(_why_not(error, kind, name, what, config)) from error
    _judge_weights(model, report, kind, name, what, student=student)
    return model


def check_folder(name: str, what: str, kwargs: Mapping[str, object]) -> None:
    """Raise ConfigError if the name is a directory without a usable model (unless the options name other files)."""
    if not _OTHER_FILES & kwargs.keys():
        check_model_folder(name, what)


def read_config(kind: Kind, name: str, what: str, kwargs: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a model; ``kwargs``: the options for ``from_pretrained``.

    Raises:
        ConfigError: it cannot be read.
    """
    from transformers import AutoConfig

    hub = {"trust_remote_code": False, **{key: kwargs[key] for key in _FOR_CONFIG if key in kwargs}}
    try:
        return kwargs.get("config") or AutoConfig.from_pretrained(name, **hub)
    except Exception as error:  # as above
        if Path(name, "config.json").is_file() and "trust_remote_code" not in str(error):
            error = ValueError(f"its config.json cannot be read ({in_short(error)}); fix it, or download it again")
        raise ConfigError(_why_not(error, kind, name, what, None)) from error


def with_dtype(options: object, what: str = "the options") -> Any:
    """Options for ``from_pretrained`` with ``torch_dtype``, the older name, renamed to ``dtype``.

    Raises:
        ConfigError: both are given.
    """
    if not isinstance(options, Mapping) or "torch_dtype" not in options:
        return options
    if "dtype" in options:
        raise ConfigError(f"{what}: got both dtype and torch_dtype, which are the same: keep dtype")
    return {("dtype" if name == "torch_dtype" else name): value for name, value in options.items()}


def check_finite(weights: Iterable[tuple[str, torch.Tensor]], whose: str) -> None:
    """Raise ConfigError if a weight is NaN or infinite, with its name; ``whose`` starts the message."""
    for name, weight in weights:
        if weight.dtype.itemsize > 1 and not is_finite(weight):
            raise ConfigError(
                f"{whose} has values that are not finite (NaN or infinity) in {name}: it was damaged, or its training "
                "diverged; use an earlier checkpoint, or download it again"
            )


def in_short(error: BaseException) -> str:
    """Another library's error message in one line, with the type of the error where the message alone is unclear."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return text if isinstance(error, OSError | ValueError | ImportError) and text else f"{type(error).__name__}: {text}"


def _why_not(error: Exception, kind: Kind, name: str, what: str, config: PretrainedConfig | None) -> str:
    """The reason behind an error while loading."""
    text = str(error)
    if "trust_remote_code" in text:
        reason = (
            "it needs code that is shipped with the model, which abkd does not run; if you trust that code, load the "
            "model yourself and pass it to DistillTrainer"
        )
    elif ("ignore_mismatched_sizes" in text or "size mismatch" in text) and config is not None:
        reason = (
            f"{_reshaped(kind, name, config)}: config.json and the weights belong to different models; download it "
            "again"
        )
    elif isinstance(error, UnpicklingError):
        reason = "its .bin file holds more than tensors, and would run code; use a model in safetensors"
    else:
        reason = in_short(error)
        if not isinstance(error, OSError | ValueError | ImportError):
            reason += "; fix its config.json, or download it again"
    return f"{what}: cannot load {kind.noun} from {name!r}: {reason}"


def _reshaped(kind: Kind, name: str, config: PretrainedConfig) -> str:
    """The first tensor whose shape differs from the one in the configuration."""
    with torch.device("meta"):
        expected = kind.loader.from_config(config, trust_remote_code=False).state_dict()
    for key, tensor in stored_tensors(name).items():
        if key in expected and tensor.shape != tuple(expected[key].shape):
            return f"{key} should have shape {list(expected[key].shape)}, got {list(tensor.shape)}"
    return "some weights do not have the shapes of config.json"


def _judge_weights(
    model: nn.Module, report: Mapping[str, Any], kind: Kind, name: str, what: str, *, student: bool
) -> None:
    """Refuse missing and unused weights, or for a student warn about them."""
    reshaped = {key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys", ())}
    new = sorted({*report.get("missing_keys", ()), *reshaped})
    extra = sorted(key for key in report.get("unexpected_keys", ()) if not kind.unused.search(key))
    if report.get("error_msgs"):
        raise ConfigError(f"{what}: cannot load {name!r}: {' '.join(report['error_msgs'])[:_LONGEST]}")
    built = type(model).__name__
    if not student and new:
        raise ConfigError(
            f"{what}: {name!r} has no weights for {some(new)}, which would be random: it is not a trained {built}; "
            "choose one that is, or download it again"
        )
    if not student and extra:
        raise ConfigError(
            f"{what}: {name!r} has weights that do not match its config.json, such as {some(extra)}: as a {built} it "
            "would not compute what it was trained to; fix its config.json, or download it again"
        )
    if new:
        logger.warning("abkd: %s: %r has no weights for %s; they are initialised randomly", what, name, some(new))
    if extra:
        logger.warning("abkd: %s: %r has weights that a %s does not use: %s", what, name, built, some(extra))
