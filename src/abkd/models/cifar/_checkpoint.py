"""Loading of published checkpoints into a network: their containers and parameter names, messages for a mismatch."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from abkd.errors import ConfigError
from abkd.models.cifar._names import create, names

_CONTAINERS = ("model", "state_dict")  # RepDistiller and its descendants; pytorch_resnet_cifar10
_RENAMED = (("linear.", "fc."), (".shortcut.", ".downsample."))  # pytorch_resnet_cifar10's names -> ours


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load weights into ``model`` from a ``.safetensors`` file or one of ``torch.save`` (read without running code).

    Supported are plain state dicts, checkpoints of RepDistiller (CRD) and its descendants, which use the same parameter
    names, and of pytorch_resnet_cifar10 (``resnet20_a`` …); with or without the ``module.`` prefix of ``DataParallel``.

    Raises:
        ConfigError: the file cannot be read, or its weights are of another network or number of classes; ``model`` is
            unchanged.
    """
    found, own = _read(Path(path)), model.state_dict()
    weights = _named_as(own, found)
    misfit = _compare(own, weights)
    if any(misfit):
        raise ConfigError(f"{path} does not fit this {type(model).__name__}: {_explain(own, weights, misfit, found)}")
    model.load_state_dict(weights, strict=False)  # only counters may be missing


class _Misfit(NamedTuple):
    """Parameter names: missing from the file, unknown to the network, and with other shapes."""

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]


def _read(path: Path) -> dict[str, Tensor]:
    if path.exists() and not path.is_file():
        raise ConfigError(
            f"The checkpoint {path} must be a file of weights, got a folder, pipe or device. Use a file that "
            "torch.save(model.state_dict(), path) wrote."
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # RepDistiller's last checkpoint holds its args
            saved = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch's reader raises different errors, depending on the damage
        raise ConfigError(
            f"The checkpoint {path} cannot be read as weights ({_why(error)}). Use a complete .pth, .pt or "
            ".safetensors file that holds only tensors, as torch.save(model.state_dict(), path) writes it."
        ) from error
    for container in _CONTAINERS:
        if isinstance(saved, dict) and isinstance(saved.get(container), dict):
            saved = saved[container]
    if not isinstance(saved, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in saved.items()):
        raise ConfigError(
            f"The checkpoint {path} holds no state dict, neither at the top level nor under "
            f"{' or '.join(map(repr, _CONTAINERS))}; save model.state_dict()."
        )
    prefixed = all(name.startswith("module.") for name in saved)
    return {name.removeprefix("module.") if prefixed else name: value for name, value in saved.items()}


def _why(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own message advises running the code in the file
        return "it is damaged, or holds objects other than tensors"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"it is damaged: {type(error).__name__}"


def _named_as(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the network's own parameter names, with other projects' names translated."""
    return {name if name in own else _rename(name): value for name, value in found.items()}


def _rename(name: str) -> str:
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def _compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> _Misfit:
    return _Misfit(
        # torch before 0.4.1 had no batch counters, and nothing here reads them
        missing=[name for name in own if name not in weights and not name.endswith("num_batches_tracked")],
        unknown=[name for name in weights if name not in own],
        reshaped=[name for name in own if name in weights and own[name].shape != weights[name].shape],
    )


def _explain(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], misfit: _Misfit, found: Mapping[str, Tensor]
) -> str:
    if _only_classes_differ(own, weights, misfit):
        head = list(own)[-1]
        return (
            f"it has {len(weights[head])} classes, and the network has {len(own[head])}; "
            f"create the network with num_classes={len(weights[head])}."
        )
    shapes = [f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}" for name in misfit.reshaped]
    parts = {"it lacks": misfit.missing, "the network lacks": misfit.unknown, "other shapes:": shapes}
    differences = "; ".join(f"{what} {_some(which)}" for what, which in parts.items() if which)
    return f"{differences}. {_way_out(found)}"


def _only_classes_differ(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], misfit: _Misfit) -> bool:
    """Whether only the number of classes of the head differs; it comes last in every network."""
    head = list(own)[-2:]
    return (
        not misfit.missing
        and not misfit.unknown
        and misfit.reshaped == head
        and all(own[name].dim() == weights[name].dim() for name in head)
        and own[head[0]].shape[1] == weights[head[0]].shape[1]
    )


def _some(which: list[str], most: int = 3) -> str:
    return ", ".join(which[:most]) + (f", … ({len(which)} in all)" if len(which) > most else "")


def _way_out(found: Mapping[str, Tensor]) -> str:
    for name in names():
        with torch.device("meta"):
            own = create(name).state_dict()
        weights = _named_as(own, found)
        misfit = _compare(own, weights)
        if not any(misfit) or _only_classes_differ(own, weights, misfit):
            return f"It fits create({name!r}, num_classes={len(weights[list(own)[-1]])})."
    return f"Create the network that the file was saved from, one of: {', '.join(names())}, wrn_DEPTH_WIDTH."
