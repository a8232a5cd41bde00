"""Finding the logits in a classifier's output, and the image sizes that it accepts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError

_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 112, 160, 192, 227, 240, 448, 512, 8, 16, 24, 48, 84, 105, 14, 56)
_SECONDS = 10.0  # limit of the search for an image size that works


def logits_in(out: Any, name: str) -> Tensor:
    """``[B, C]``: the output itself, its entry or attribute ``logits``, or the first of a tuple; also ``[B, C, 1, 1]``.

    Raises:
        ConfigError: there are none; ``name`` is the model's name in the message.
    """
    if isinstance(out, Mapping):
        if "logits" not in out:
            keys = ", ".join(map(repr, out)) or "nothing"
            raise ConfigError(f"{name} must return its logits [B, C] under 'logits', got a dict with {keys}")
        out = out["logits"]
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, tuple | list) and len(out):
        out = out[0]
    if not isinstance(out, Tensor):
        raise ConfigError(
            f"{name} must return logits [B, C], alone, first in a tuple, or under the name logits, got "
            f"{type(out).__name__}"
        )
    if out.ndim > 2 and out.shape[2:].numel() == 1:
        return out.flatten(1)
    return out[None] if out.ndim == 1 else out  # one image, squeezed


def fitting(call: Callable[[int, int], object]) -> tuple[int, int] | None:
    """The first of the usual ``(channels, side)`` that a model accepts; None if there is none."""
    end = time.monotonic() + _SECONDS
    for channels in (3, 1):
        for side in _SIDES:
            if time.monotonic() > end:
                return None
            with suppress(Exception):  # a failure means that this size does not work
                call(channels, side)
                return channels, side
    return None


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and restore the mode of each submodule. Raises ConfigError if it has no eval mode."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
    except NotImplementedError as error:  # raised by torch.export's modules
        raise ConfigError(
            f"the {type(model).__name__} has no eval mode, as it was made by torch.export: pass the original module"
        ) from error
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers (such as batch norm statistics) and the RNG state afterwards."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with in_eval_mode(model), torch.random.fork_rng():
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
