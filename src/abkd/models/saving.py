"""The saved form of a student: adapters merged, weights rounded to another dtype; and checks that it can be saved."""

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
from abkd.models.parts import without_peft
from abkd.models.rows import ModelRows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OF_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(name_or_path: str, *, what: str = "model_name_or_path", **hub: object) -> str | None:
    """The dtype of most of a model's stored weights, such as "bfloat16"; for an adapter, that of its base model.

    None if it is unknown, or not in :data:`DTYPES` (a quantised model).
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
    except (OSError, ValueError):  # loading the model raises it again
        return None
    dtype = str(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)).removeprefix("torch.")
    return dtype if dtype in DTYPES else None


def final_copy(student: ModelRows, *, dtype: torch.dtype | None, merge: bool) -> nn.Module:
    """A copy of the student to be saved.

    Args:
        dtype: its weights are rounded to this dtype's precision, and keep the dtype that they were trained in.
        merge: whether its adapters are merged into its weights.
    """
    model = copy.deepcopy(student.model)
    model.forward = copy.deepcopy(student.forward, {id(student.model): model})  # without any wrappers
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


def check_trainable(model: nn.Module, name: str) -> None:
    """Raise ConfigError if a student cannot be trained and saved.

    Weights in float16 are refused because small updates underflow and large ones overflow.

    Args:
        model: the student, with its adapters.
        name: its name in messages.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(f"{name} is TorchScript, which cannot be trained here: pass the original module")
    _check_hooks(model, name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        count = sum(1 for _ in model.parameters())
        raise ConfigError(
            f"{name} has nothing to train: "
            + (
                f"all its {count} parameters are frozen; set requires_grad of some (for adapters, is_trainable=True "
                "in PeftModel.from_pretrained)"
                if count
                else "it has no parameters"
            )
        )
    _check_state(model, name)
    trained = [(name, weight.dtype) for name, weight in model.named_parameters() if weight.requires_grad]
    if (part := next((name for name, dtype in trained if dtype.is_complex), None)) is not None:
        raise ConfigError(
            f"{name} has complex weights ({part}), which the optimizers do not support: store them as pairs of real "
            "numbers (torch.view_as_real), and use torch.view_as_complex in its forward"
        )
    half = next((name for name, dtype in trained if dtype == torch.float16), None)
    if half is not None:
        raise ConfigError(
            f"the student's weights are in float16 ({half}), in which small updates are lost and large ones overflow: "
            "load it in float32 (leave dtype out of model_init_kwargs), and set bf16: true or fp16: true for mixed "
            "precision"
        )


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _check_hooks(model: nn.Module, name: str) -> None:
    """A student is called with the loss inside: hooks on it would not see its own inputs and outputs."""
    if any(getattr(each, kind) for each in (model, without_peft(model)) for kind in _HOOKS):
        raise ConfigError(
            f"{name} has hooks on itself (such as register_forward_hook), which training would not run: move their "
            "work into its forward, or register them on its layers"
        )


def _check_state(model: nn.Module, name: str) -> None:
    """A plain module's state must be plain tensors that own their memory; transformers handles its own models."""
    if hasattr(model, "save_pretrained"):
        return
    for key, value in {**model.state_dict(), **dict(model.named_buffers())}.items():
        if not isinstance(value, torch.Tensor):
            found = f"a {type(value).__name__} in its state ({key}): remove get_extra_state"
        elif value.layout is not torch.strided:
            found = f"a tensor that is not dense ({key}): use its to_dense()"
        elif any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
            found = f"a tensor whose elements share memory, as after expand() ({key}): use its clone()"
        else:
            continue
        raise ConfigError(f"{name} cannot be saved and resumed, because it has {found}")


@contextmanager
def use_cache_kept(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Restore a model's ``use_cache``, which the Trainer turns off: the saved student must also generate.

    ``wanted``: whether the training arguments set it; then it is left alone.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    yield
    if before is not None and not wanted:
        config.use_cache = before
