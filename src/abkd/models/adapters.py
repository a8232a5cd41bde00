"""Adapters of PEFT: fresh ones, trained ones out of a directory, and the base model that they belong to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from abkd.errors import ConfigError, shown
from abkd.models.folders import ADAPTER, is_adapter, is_local, read_json
from abkd.models.remarks import logger, some
from abkd.storage import atomic_write

_INSTALL = "needs the package peft: pip install 'abkd[lora]'"


def check_peft(why: str) -> None:
    """Raise ConfigError where PEFT is not installed; ``why`` says what needs it."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{why} {_INSTALL}") from error


def has_adapters(model: Any) -> bool:
    """Whether a model has adapters of PEFT, of its own wrapper or of transformers' integration."""
    return hasattr(model, "get_base_model") or bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_config(name: str, what: str) -> dict[str, Any]:
    """``adapter_config.json`` of a directory.

    Raises:
        ConfigError: it is of no adapter that a causal language model can have.
    """
    values = read_json(Path(name).expanduser() / ADAPTER)
    task = values.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ConfigError(f"{what}: the adapter in {name!r} is for the task {task}, and not for CAUSAL_LM")
    if "num_virtual_tokens" in values:
        raise ConfigError(f"{what}: {name!r} {_PROMPTS.format(values.get('peft_type'))}")
    if values.get("megatron_config"):
        raise ConfigError(
            f"{what}: the adapter in {name!r} names code to import (megatron_core), which abkd does not run"
        )
    check_peft(f"{what}: the adapter in {name!r}")
    return values


_PROMPTS = (
    "holds learned prompts ({}), which put tokens in front of every row; only adapters on layers, such as LoRA, can be "
    "used"
)


def check_adapters(model: Any, what: str, *, trained: bool) -> None:
    """Raise ConfigError where a model, which may have none, has adapters of a kind that cannot be read or trained."""
    for config in getattr(model, "peft_config", {}).values() if has_adapters(model) else ():
        _check_kind(config, what, trained=trained)


def _check_kind(config: Any, what: str, *, trained: bool) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError(f"{what} {_PROMPTS.format(kind)}")
    if kind == "ADALORA" and trained:
        raise ConfigError(
            f"{what} is for AdaLoRA, whose ranks are set anew between the steps of a training loop made for it, and "
            "would stay as they are here: take LoRA"
        )


def base_of(name: str, values: Mapping[str, Any], what: str) -> str:
    """The base model of an adapter: a directory, as seen from here or from the adapter, or a hub name, which is said.

    Raises:
        ConfigError: none is named, it is not there, or it is an adapter itself.
    """
    base = values.get("base_model_name_or_path")
    way_out = f"write where it lies into base_model_name_or_path of {Path(name) / ADAPTER}"
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{what}: the adapter in {name!r} does not say what its base model is: {way_out}")
    if (path := _local_base(name, base)) is not None:
        if is_adapter(str(path)):
            raise ConfigError(f"{what}: the base model of {name!r}, {base!r}, is an adapter itself: merge that first")
        return str(path.resolve())
    if is_local(base):
        raise ConfigError(f"{what}: the base model of the adapter {name!r}, {base!r}, is not there: {way_out}")
    logger.warning(
        "abkd: the adapter in %s names the base model %r, which is fetched from the hub by that name", name, base
    )
    return base


def base_folder(name: str) -> Path | None:
    """The directory of an adapter's base model; None for what is no adapter, and where the base is none."""
    try:
        base = read_json(Path(name).expanduser() / ADAPTER).get("base_model_name_or_path") if is_adapter(name) else None
    except ConfigError:  # whoever loads it says so
        return None
    return _local_base(name, base) if isinstance(base, str) and base else None


def _local_base(name: str, base: str) -> Path | None:
    """As seen from here, or from the adapter."""
    places = (Path(base).expanduser(), Path(name).expanduser() / base)
    return next((path for path in places if path.is_dir()), None)


def read_adapter(model: nn.Module, name: str, base: str, what: str, *, trainable: bool) -> nn.Module:
    """``model``, the base, with the trained adapter in the directory ``name``.

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
    except Exception as error:  # of PEFT, torch and safetensors; every one means the same
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{what}: the adapter in {name!r} does not fit its base model {base!r}: {text}") from error
    if unused:
        raise ConfigError(
            f"{what}: the adapter in {name!r} holds weights that its base model {base!r} has no place for, such as "
            f"{some(unused)}: it was made for another model"
        )
    return adapted


def with_adapters(model: Any, peft_config: Any) -> nn.Module:
    """The model with fresh adapters, which alone are trained; the adapter names its base model by a full path.

    Raises:
        ConfigError: PEFT is missing or finds no place for them, they are of a kind that cannot be used, or the model
            has adapters already.
    """
    check_peft("use_peft")
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"peft_config must be a configuration of PEFT, such as LoraConfig(r=16), but is {shown(peft_config)}"
        )
    _check_kind(peft_config, "peft_config", trained=True)
    if has_adapters(model):
        raise ConfigError(
            "the student has adapters already, and fresh ones would take their place: leave out peft_config to go on "
            "training those, or merge them first (model.merge_and_unload())"
        )
    with _quiet():
        try:
            adapted: Any = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ConfigError(
                f"PEFT finds no place for adapters in {type(model).__name__} ({error}): name layers of it in "
                "lora_target_modules, such as [q_proj, v_proj]"
            ) from error
    name = str(getattr(model, "name_or_path", "") or "")
    if name and Path(name).expanduser().is_dir():
        adapted.peft_config["default"].base_model_name_or_path = str(Path(name).expanduser().resolve())
    return adapted


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what PEFT calls in transformers is not the user's business
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets it as GPT-2's layers need it, and says so
        warnings.filterwarnings("ignore", "Could not find a config file")  # of a base model on the hub
        yield


_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [abkd, distillation, {kind}]
---

# An adapter distilled with abkd

Only what was trained is here (rank {rank}, on {layers}); it belongs to the base model `{base}`.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")  # this directory; loads the base model too
tokenizer = AutoTokenizer.from_pretrained(".")
model = model.merge_and_unload()  # optional: an ordinary model without adapters
```

To save the merged model at once, distil with `merge_adapter: true`. To train on, give this directory as
`model_name_or_path` with `use_peft: true`.
"""


def write_adapter_card(directory: Path) -> None:
    """``README.md`` beside a saved adapter, instead of the blank form that PEFT writes; nothing where there is none."""
    if not (directory / ADAPTER).is_file():
        return
    values = read_json(directory / ADAPTER)
    card = _CARD.format(
        base=values.get("base_model_name_or_path") or "unknown",
        kind=str(values.get("peft_type", "adapter")).lower(),
        rank=values.get("r", "unknown"),
        layers=", ".join(sorted(map(str, values.get("target_modules") or ()))) or "no named layers",
    )
    atomic_write(directory / "README.md", card.encode())
