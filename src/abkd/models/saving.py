"""A student in the form that it is saved in: its adapters merged, its weights rounded to another number type."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from abkd.errors import ConfigError
from abkd.models.adapters import adapter_config, base_of
from abkd.models.folders import is_adapter, stored_tensors
from abkd.models.rows import ModelRows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OF_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(name_or_path: str, *, what: str = "model_name_or_path", **hub: Any) -> str | None:
    """The number type that most weights of a model lie in, such as "bfloat16"; of an adapter that of its base model.

    None where it cannot be told, or is none of :data:`DTYPES` (a quantised model).
    """
    if is_adapter(name_or_path):
        return stored_dtype(base_of(name_or_path, adapter_config(name_or_path, what), what))
    sizes: dict[str, int] = {}
    for tensor in stored_tensors(name_or_path).values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
    if sizes:
        return _OF_FILES.get(max(sizes, key=lambda dtype: sizes[dtype]))
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    except (OSError, ValueError):  # whoever loads the model says so
        return None
    told = str(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)).removeprefix("torch.")
    return told if told in DTYPES else None


def final_copy(student: ModelRows, *, dtype: torch.dtype | None, merge: bool) -> Any:
    """The student once more, as it is to be saved.

    Args:
        dtype: its weights are rounded to what this type can hold, and stay in the type that they were trained in.
        merge: its adapters become part of its weights.
    """
    model = copy.deepcopy(student.model)
    model.forward = copy.deepcopy(student.forward, {id(student.model): model})  # not what others wrapped around it
    if merge:
        model = model.merge_and_unload()
    if dtype is not None:
        _round(model, dtype)
    return model


@torch.no_grad()
def _round(model: nn.Module, dtype: torch.dtype) -> None:
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype.itemsize > dtype.itemsize:
            weight.copy_(weight.to(dtype))


def check_trainable(model: nn.Module) -> None:
    """Raise ConfigError where weights in float16 are to be trained: their updates vanish, or overflow to nonsense."""
    name = next((name for name, p in model.named_parameters() if p.requires_grad and p.dtype == torch.float16), None)
    if name is not None:
        raise ConfigError(
            f"the student's weights are in float16 ({name}), in which small updates are lost and large ones overflow: "
            "load it in float32 (leave dtype out of model_init_kwargs), and set bf16: true or fp16: true for mixed "
            "precision"
        )


@contextmanager
def use_cache_kept(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Undoes that the Trainer switches a model's ``use_cache`` off: the saved student is for generating too.

    ``wanted``: whether the training arguments decide about it.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    yield
    if before is not None and not wanted:
        config.use_cache = before
