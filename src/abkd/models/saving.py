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


def check_trainable(model: Any, name: str) -> None:
    """Raise ConfigError where a student cannot be trained and saved.

    Weights in float16 are refused because their updates vanish, or overflow to nonsense.

    Args:
        model: the student, with its adapters.
        name: what it is called.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(f"{name} is TorchScript, which cannot be trained here: give the module that it was made from")
    _check_hooks(model, name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        count = sum(1 for _ in model.parameters())
        raise ConfigError(
            f"{name} has nothing to train: "
            + (
                f"all its {count} parameters are frozen, so set requires_grad of some (for adapters, is_trainable=True "
                "in PeftModel.from_pretrained)"
                if count
                else "it has no parameters"
            )
        )
    _check_state(model, name)
    trained = [(name, weight.dtype) for name, weight in model.named_parameters() if weight.requires_grad]
    if (part := next((name for name, dtype in trained if dtype.is_complex), None)) is not None:
        raise ConfigError(
            f"{name} has complex weights ({part}), which the optimizers do not take: keep them as pairs of real numbers"
            " (torch.view_as_real), and use torch.view_as_complex in its forward"
        )
    half = next((name for name, dtype in trained if dtype == torch.float16), None)
    if half is not None:
        raise ConfigError(
            f"the student's weights are in float16 ({half}), in which small updates are lost and large ones overflow: "
            "load it in float32 (leave dtype out of model_init_kwargs), and set bf16: true or fp16: true for mixed "
            "precision"
        )


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _check_hooks(model: Any, name: str) -> None:
    """A student is called with the loss inside: hooks on it would see neither its inputs nor its outputs."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(getattr(each, kind) for each in (model, base) for kind in _HOOKS):
        raise ConfigError(
            f"{name} has hooks on itself (register_forward_hook and the like), which its training would pass over: do "
            "what they do in its forward, or put them on layers inside it"
        )


def _check_state(model: Any, name: str) -> None:
    """A plain module's state is plain tensors, each with memory of its own; transformers takes care of its models."""
    if hasattr(model, "save_pretrained"):
        return
    for key, value in {**model.state_dict(), **dict(model.named_buffers())}.items():
        if not isinstance(value, torch.Tensor):
            found = f"a {type(value).__name__} in its state ({key}): leave get_extra_state out"
        elif value.layout is not torch.strided:
            found = f"a tensor that is not dense ({key}): take its to_dense()"
        elif any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
            found = f"a tensor whose numbers share memory, as expand() makes it ({key}): take its clone()"
        else:
            continue
        raise ConfigError(f"{name} cannot be saved and resumed, for it has {found}")


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
