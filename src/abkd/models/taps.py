"""Features of a model: outputs of its modules, kept while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from abkd.errors import ConfigError

_HIDDEN = re.compile(r"hidden\.(-?\d+)")


class _Stop(Exception):
    """Raised inside a model to end its forward pass: everything that is needed is known."""


@contextmanager
def tapped(
    model: nn.Module,
    features: Sequence[str],
    layers: Sequence[nn.Module] = (),
    head: nn.Module | None = None,
    *,
    stop: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """While it is open, keeps the named features of ``model`` in the returned dictionary.

    Args:
        model: names are paths of its modules.
        features: names as in :class:`abkd.models.rows.Outputs`.
        layers: the layers that "hidden.k" counts.
        head: the module whose input is the last hidden state; None: the caller adds that (:func:`is_last`).
        stop: end the block as soon as all features are known.

    Raises:
        ConfigError: a name is unknown.
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        kept[name] = _tensor(output, name)
        if stop and len(kept) == len(features):
            raise _Stop

    hooks: list[RemovableHandle] = []
    try:
        for name in features:
            if not is_last(name, layers):
                hooks.append(_hook(model, name, layers, partial(keep, name)))
            elif head is not None:
                hooks.append(_before(head, partial(keep, name)))
        yield kept
    except _Stop:
        return
    finally:
        for hook in hooks:
            hook.remove()


def is_last(name: str, layers: Sequence[nn.Module]) -> bool:
    """Whether a feature is the last hidden state, after the final norm: the input of the head."""
    found = _HIDDEN.fullmatch(name)
    return found is not None and bool(layers) and int(found[1]) in (-1, len(layers))


def layers_of(backbone: nn.Module, count: int) -> list[nn.Module]:
    """The layers of a transformer: the only list of ``count`` modules in it; empty if there is none."""
    lists = [each for each in backbone.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    return list(lists[0]) if len(lists) == 1 else []


def of_rows(
    kept: Mapping[str, Tensor], features: Sequence[str], size: Sequence[int], rows: Tensor
) -> dict[str, Tensor]:
    """``[N, ...]`` each: the kept features of a batch at its rows.

    Args:
        size: the leading dimensions that ``rows`` indexes when they are flattened: ``[B, T]`` for text, ``[B]``.

    Raises:
        ConfigError: a feature has other leading dimensions, was not computed, or has no gradient while it should.
    """
    found: dict[str, Tensor] = {}
    for name in features:
        if name not in kept:
            raise ConfigError(f"{name} was not computed: its module was not called; choose another feature")
        value = kept[name]
        if list(value.shape[: len(size)]) != list(size):
            expected = ", ".join(map(str, size))
            raise ConfigError(f"{name} must be a tensor [{expected}, ...], got {list(value.shape)}; choose another")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ConfigError(
                f"the student's feature {name} has no gradient: it is computed from frozen weights only, or under "
                "reentrant gradient checkpointing (set gradient_checkpointing_kwargs: {use_reentrant: false}); choose "
                "a later one"
            )
        found[name] = value.flatten(0, len(size) - 1)[rows]
    return found


def _hook(model: nn.Module, name: str, layers: Sequence[nn.Module], keep: Callable[[object], None]) -> RemovableHandle:
    found = _HIDDEN.fullmatch(name)
    if found is None:
        return _module(model, name).register_forward_hook(lambda _, __, output: keep(output))
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no list of layers that {name} could count; {_ways_out(model)}")
    place, count = int(found[1]), len(layers)
    place = place + count + 1 if place < 0 else place
    if not 0 <= place <= count:
        raise ConfigError(f"{name}: {type(model).__name__} has the hidden states 0 (embeddings) to {count}")
    if place == 0:
        return _before(layers[0], keep)
    return layers[place - 1].register_forward_hook(lambda _, __, output: keep(output))


def _before(layer: nn.Module, keep: Callable[[object], None]) -> RemovableHandle:
    def hook(_: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _module(model: nn.Module, name: str) -> nn.Module:
    known = dict(model.named_modules())
    if name not in known or not name:
        raise ConfigError(f"{type(model).__name__} has no module {name!r}; {_ways_out(model)}")
    return known[name]


def _ways_out(model: nn.Module) -> str:
    names = [name for name, _ in model.named_modules() if name and name.count(".") <= 1]
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"name a module by its path, such as one of {shown}"


def _tensor(output: object, name: str) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(first, Tensor):
        return first
    raise ConfigError(f"the module {name} returns a {type(output).__name__}, not a tensor; choose one that does")
