"""Where the logits are in what a classifier returns, and the images that it can read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError

_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 112, 160, 192, 227, 240, 448, 512, 8, 16, 24, 48, 84, 105, 14, 56)
_SECONDS = 10.0  # that are spent on looking for a side which fits


def logits_in(out: Any, name: str) -> Tensor:
    """``[B, C]``: the output itself, its entry or attribute ``logits``, or the first of a tuple; also ``[B, C, 1, 1]``.

    Raises:
        ConfigError: there is none; ``name`` is what the model is called.
    """
    if isinstance(out, Mapping):
        if "logits" not in out:
            keys = ", ".join(map(repr, out)) or "nothing"
            raise ConfigError(f"{name} returns a dict of {keys}: expected its logits [B, C] under 'logits'")
        out = out["logits"]
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, tuple | list) and len(out):
        out = out[0]
    if not isinstance(out, Tensor):
        raise ConfigError(
            f"{name} returns {type(out).__name__}: expected logits [B, C], alone, first in a tuple, or called logits"
        )
    if out.ndim > 2 and out.shape[2:].numel() == 1:
        return out.flatten(1)
    return out[None] if out.ndim == 1 else out  # of one image, squeezed


def fitting(call: Callable[[int, int], Any]) -> tuple[int, int] | None:
    """The first ``(channels, side)`` that a model reads, of those that are usual; None where no such is found."""
    end = time.monotonic() + _SECONDS
    for channels in (3, 1):
        for side in _SIDES:
            if time.monotonic() > end:
                return None
            with suppress(Exception):  # that it fails is what is asked
                call(channels, side)
                return channels, side
    return None


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Each part of the model gets its own mode back. Raises ConfigError where it has no such mode."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
    except NotImplementedError as error:  # of torch.export
        raise ConfigError(
            f"the {type(model).__name__} has no eval mode, as a module that torch.export made: give the one that it "
            "was made from"
        ) from error
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Modes, buffers (batch statistics among them) and random numbers are afterwards what they were."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with in_eval_mode(model), torch.random.fork_rng():
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
