"""What is asked of a classifier that is loaded by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from abkd.errors import ConfigError, VocabularyError, shown
from abkd.models.remarks import some
from abkd.models.vision._classes import real_names, same_name

logger = logging.getLogger("abkd")


class LoadRequest(NamedTuple):
    """``what``: the field that names the model. ``num_classes``, ``class_names``: of the data, where they are known.

    ``fresh_head``: whether its head may be replaced. ``allow_code``: modules that a saved directory may name.
    """

    what: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    fresh_head: bool
    allow_code: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """The field that holds what the model is built with."""
        return self.what.replace("_name_or_path", "_init_kwargs")

    @property
    def own_names(self) -> tuple[str, ...] | None:
        """Names for a head that is trained for the data; a head that is kept has names of its own."""
        return self.class_names if self.fresh_head else None

    def plain(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a model is built with, as it is written beside a student: numbers of numpy as Python's.

        Raises ConfigError where a student is to be built with what no file can hold.
        """
        made = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
        for name, value in made.items() if self.fresh_head else ():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{self.options}: {name} is {shown(value)}, which cannot be written beside the saved student, so "
                    "that it could not be built again: expected numbers, strings, lists and dicts; build the rest "
                    "inside the function"
                ) from error
        return made

    def refuse_head(self, name: str, count: int) -> None:
        """Raise VocabularyError where a model for ``count`` classes must keep its head and cannot."""
        if self.num_classes not in (None, count) and not self.fresh_head:
            raise VocabularyError(
                f"{self.what}: {name} tells {count} classes apart and the data has {self.num_classes}. A teacher "
                "cannot be given other classes: take one that was trained on these, or train it on them first "
                "(abkd distill without a teacher)"
            )

    def say_other_classes(self, name: str, names: Sequence[str]) -> None:
        """Say where a student's head was trained for others than it is to tell apart, though as many.

        (A teacher's classes are compared with the data's by ``check_classes``.)
        """
        if self.own_names and real_names(names) and not all(map(same_name, names, self.own_names)):
            logger.warning(
                "abkd: the head of %s was trained for other classes, or for the same in another order; training starts "
                "from it all the same",
                name,
            )

    def say_new(self, name: str, new: Sequence[str]) -> None:
        """Say which weights are not the trained ones."""
        if new:
            logger.warning(
                "abkd: %s gets a new head for %s classes (%s); it starts untrained",
                name,
                self.num_classes or "its",
                ", ".join(new[:4]) + (" …" if len(new) > 4 else ""),
            )

    def fill(self, model: nn.Module, weights: Mapping[str, Tensor], name: str, *, new_head: bool) -> None:
        """Load weights, of which a file may hold those that several layers share once or several times.

        Args:
            new_head: they were trained for another number of classes: all but those of the head.

        Raises:
            ConfigError: some are missing, or they are of another architecture.
        """
        own = model.state_dict()
        new = [key for key in own if key in weights and _of_other_size(own[key], weights[key])]
        strange = sorted(set(weights) - set(own))
        if strange or (new and not (new_head and all(own[key].shape[1:] == weights[key].shape[1:] for key in new))):
            raise ConfigError(
                f"{self.what}: the weights of {name} are those of another architecture ({some([*strange, *new])})"
            )
        model.load_state_dict({key: value for key, value in weights.items() if key not in new}, strict=False)
        for names in _by_weight(model):
            found = [key for key in names if key in weights]
            if not found:
                raise ConfigError(
                    f"{self.what}: {name} has no weights for {names[0]}: download or save it again, with all of them"
                )
            if any(not torch.equal(weights[found[0]], weights[key]) for key in found[1:]):
                raise ConfigError(
                    f"{self.what}: {name} has different weights for {some(found)}, which are one in the network: it "
                    "was saved from another"
                )
        self.say_new(name, new)


def _of_other_size(own: Tensor, found: Tensor) -> bool:
    return not is_lazy(own) and own.shape != found.shape


def _by_weight(model: nn.Module) -> list[list[str]]:
    """The names of each weight: several where layers share it."""
    names: dict[Any, list[str]] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        unplaced = is_lazy(weight) or not weight.numel()
        place = name if unplaced else (weight.data_ptr(), *weight.shape, *weight.stride())
        names.setdefault(place, []).append(name)
    return list(names.values())
