"""PEFT adapters: creating them, loading trained ones from a directory, and finding their base model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from abkd.errors import ConfigError, shown
from abkd.models.folders import ADAPTER, is_adapter, is_local, read_json
from abkd.models.remarks import logger, some
from abkd.storage import atomic_write

if TYPE_CHECKING:
    from peft import PeftConfig

_INSTALL = "needs the package peft: pip install 'abkd[lora]'"


def check_peft(why: str) -> None:
    """Raise ConfigError if PEFT is not installed; ``why`` names what needs it."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{why} {_INSTALL}") from error


def has_adapters(model: object) -> bool:
    """Whether a model has PEFT adapters, through PEFT's wrapper or transformers' integration."""
    return hasattr(model, "get_base_model") or bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_config(name: str, what: str) -> dict[str, Any]:
    """Read ``adapter_config.json`` from a directory.

    Raises:
        ConfigError: the adapter is not supported on causal language models.
    """
    values = read_json(Path(name).expanduser() / ADAPTER)
    task = values.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ConfigError(f"{what}: expected an adapter for CAUSAL_LM in {name!r}, got one for the task {task}")
    if "num_virtual_tokens" in values:
        raise ConfigError(f"{what}: {name!r} {_PROMPTS.format(values.get('peft_type'))}")
    if values.get("megatron_config"):
        raise ConfigError(
            f"{what}: the adapter in {name!r} names code to import (megatron_core), which abkd does not run"
        )
    check_peft(f"{what}: the adapter in {name!r}")
    return values


_PROMPTS = (
    "uses prompt learning ({}), which prepends tokens to every sequence; only adapters on layers, such as LoRA, are "
    "supported"
)


def check_adapters(model: object, what: str, *, trained: bool) -> None:
    """Raise ConfigError if a model has adapters of an unsupported kind; ``trained``: they will be trained."""
    for config in getattr(model, "peft_config", {}).values() if has_adapters(model) else ():
        _check_kind(config, what, trained=trained)


def _check_kind(config: PeftConfig, what: str, *, trained: bool) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError(f"{what} {_PROMPTS.format(kind)}")
    if kind == "ADALORA" and trained:
        raise ConfigError(
            f"{what} is for AdaLoRA, which needs a training loop that reallocates its ranks between steps; here they "
            "would stay fixed: use LoRA"
        )


def base_of(name: str, values: Mapping[str, object], what: str) -> str:
    """The base model of an adapter: a directory, relative to here or to the adapter, or a hub name (with a warning).

    Raises:
        ConfigError: none is named, it does not exist, or it is itself an adapter.
    """
    base = values.get("base_model_name_or_path")
    way_out = f"set base_model_name_or_path in {Path(name) / ADAPTER} to its path or hub name"
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{what}: the adapter in {name!r} does not name its base model: {way_out}")
    if (path := _local_base(name, base)) is not None:
        if is_adapter(str(path)):
            raise ConfigError(f"{what}: the base model of {name!r}, {base!r}, is itself an adapter: merge it first")
        return str(path.resolve())
    if is_local(base):
        raise ConfigError(f"{what}: the base model of the adapter {name!r}, {base!r}, does not exist: {way_out}")
    logger.warning(
        "abkd: the adapter in %s names the base model %r, which is loaded from the hub by that name", name, base
    )
    return base


def base_folder(name: str) -> Path | None:
    """The directory of an adapter's base model; None if ``name`` is no adapter or its base is no local directory."""
    try:
        base = read_json(Path(name).expanduser() / ADAPTER).get("base_model_name_or_path") if is_adapter(name) else None
    except ConfigError:  # loading the adapter raises it again
        return None
    return _local_base(name, base) if isinstance(base, str) and base else None


def _local_base(name: str, base: str) -> Path | None:
    """``base`` as a directory, relative to the working directory or to the adapter."""
    places = (Path(base).expanduser(), Path(name).expanduser() / base)
    return next((path for path in places if path.is_dir()), None)


def read_adapter(model: nn.Module, name: str, base: str, what: str, *, trainable: bool) -> nn.Module:
    """Load the trained adapter in the directory ``name`` onto its base ``model``.

    Raises:
        ConfigError: the adapter does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        with _quiet():
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, name, is_trainable=trainable)
            adapted.peft_config["default"].base_model_name_or_path = base
            unused = sorted(
                key for key in load_peft_weights(name, "cpu") if key not in get_peft_model_state_dict(adapted)
            )
    except Exception as error:  # from PEFT, torch or safetensors; each means a misfit
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{what}: the adapter in {name!r} does not fit its base model {base!r}: {text}") from error
    if unused:
        raise ConfigError(
            f"{what}: the adapter in {name!r} has weights that its base model {base!r} does not use, such as "
            f"{some(unused)}: it was made for another model"
        )
    return adapted


def with_adapters(model: nn.Module, peft_config: object) -> nn.Module:
    """Add new adapters to a model and freeze the rest; the adapter records its base model by an absolute path.

    Raises:
        ConfigError: PEFT is not installed or finds no matching layers, the adapters are of an unsupported kind, or the
            model has adapters already.
    """
    check_peft("use_peft")
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"peft_config must be a PEFT configuration, such as LoraConfig(r=16), got {shown(peft_config)}"
        )
    _check_kind(peft_config, "peft_config", trained=True)
    if has_adapters(model):
        raise ConfigError(
            "the student already has adapters, and new ones would replace them: leave out peft_config to continue "
            "training those, or merge them first (model.merge_and_unload())"
        )
    with _quiet():
        try:
            adapted = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ConfigError(
                f"PEFT finds no layers for adapters in {type(model).__name__} ({error}): set lora_target_modules to "
                "layers of the model, such as [q_proj, v_proj]"
            ) from error
    name = str(getattr(model, "name_or_path", "") or "")
    if name and Path(name).expanduser().is_dir():
        adapted.peft_config["default"].base_model_name_or_path = str(Path(name).expanduser().resolve())
    return adapted


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from PEFT's calls into transformers; the user cannot act on it
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT corrects it for GPT-2's layers, and warns
        warnings.filterwarnings("ignore", "Could not find a config file")  # for a base model on the hub
        yield


_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [abkd, distillation, {kind}]
---

# An adapter distilled with abkd

This directory holds the trained adapter only (rank {rank}, on {layers}); its base model is `{base}`.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")  # this directory; loads the base model too
tokenizer = AutoTokenizer.from_pretrained(".")
model = model.merge_and_unload()  # optional: an ordinary model without adapters
```

To save the merged model directly, distil with `merge_adapter: true`. To continue training, set `model_name_or_path` to
this directory, with `use_peft: true`.
"""


def write_adapter_card(directory: Path) -> None:
    """Write ``README.md`` next to a saved adapter, in place of PEFT's empty template; no adapter, no file."""
    if not (directory / ADAPTER).is_file():
        return
    values = read_json(directory / ADAPTER)
    layers = values.get("target_modules")
    card = _CARD.format(
        base=values.get("base_model_name_or_path") or "unknown",
        kind=str(values.get("peft_type", "adapter")).lower(),
        rank=values.get("r", "unknown"),
        layers=", ".join(sorted(map(str, layers)))
        if isinstance(layers, list) and layers
        else str(layers or "no named layers"),
    )
    atomic_write(directory / "README.md", card.encode())
