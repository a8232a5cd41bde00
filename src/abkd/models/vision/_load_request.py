"""The requirements on a classifier that is loaded by name."""

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
from abkd.models.classes import real_names, same_name
from abkd.models.remarks import some

logger = logging.getLogger("abkd")


class LoadRequest(NamedTuple):
    """The requirements on a classifier that is loaded by name.

    ``what``: the field that names the model. ``num_classes``, ``class_names``: those of the data, if known.
    ``fresh_head``: whether its head may be replaced. ``allow_code``: modules that a saved directory may name.
    """

    what: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    fresh_head: bool
    allow_code: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """The field that holds the model's options."""
        return self.what.replace("_name_or_path", "_init_kwargs")

    @property
    def own_names(self) -> tuple[str, ...] | None:
        """The class names for a head that is trained on the data; a head that is kept has its own names."""
        return self.class_names if self.fresh_head else None

    def plain(self, options: Mapping[str, object]) -> dict[str, Any]:
        """A model's options in the form that is saved with a student: numpy's numbers as Python's.

        Raises ConfigError if a student's options cannot be written as JSON.
        """
        made = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
        for name, value in made.items() if self.fresh_head else ():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{self.options}: {name} must be a number, string, list or dict, which can be saved with the "
                    f"student to rebuild it, got {shown(value)}; build anything else inside the function"
                ) from error
        return made

    def refuse_head(self, name: str, count: int) -> None:
        """Raise VocabularyError if a model with ``count`` classes must keep its head, but the data has others."""
        if self.num_classes not in (None, count) and not self.fresh_head:
            raise VocabularyError(
                f"{self.what}: {name} has {count} classes and the data has {self.num_classes}. A teacher's head is "
                "never replaced: use one that was trained on these classes, or train it on them first "
                "(abkd distill without a teacher)"
            )

    def say_other_classes(self, name: str, names: Sequence[str]) -> None:
        """Warn if a student's head was trained for other classes than the data's, although as many.

        (``check_classes`` compares a teacher's classes with the data's.)
        """
        if self.own_names and real_names(names) and not all(map(same_name, names, self.own_names)):
            logger.warning(
                "abkd: the head of %s was trained for other classes, or for the same in another order; training still "
                "starts from it",
                name,
            )

    def say_new(self, name: str, new: Sequence[str]) -> None:
        """Warn about weights that are new instead of trained."""
        if new:
            logger.warning(
                "abkd: %s gets a new head for %s classes (%s), initialised randomly",
                name,
                self.num_classes or "its",
                ", ".join(new[:4]) + (" …" if len(new) > 4 else ""),
            )

    def fill(self, model: nn.Module, weights: Mapping[str, Tensor], name: str, *, new_head: bool) -> None:
        """Load weights into a model; weights that layers share may be in the file once or several times.

        Args:
            new_head: the weights were trained for another number of classes, so the head is not loaded.

        Raises:
            ConfigError: some are missing, or they belong to another architecture.
        """
        own = model.state_dict()
        new = [key for key in own if key in weights and _of_other_size(own[key], weights[key])]
        strange = sorted(set(weights) - set(own))
        if strange or (new and not (new_head and all(own[key].shape[1:] == weights[key].shape[1:] for key in new))):
            raise ConfigError(
                f"{self.what}: the weights of {name} belong to another architecture ({some([*strange, *new])})"
            )
        model.load_state_dict({key: value for key, value in weights.items() if key not in new}, strict=False)
        for names in _by_weight(model):
            found = [key for key in names if key in weights]
            if not found:
                raise ConfigError(
                    f"{self.what}: {name} has no weights for {names[0]}: download or save it again, with all weights"
                )
            if any(not torch.equal(weights[found[0]], weights[key]) for key in found[1:]):
                raise ConfigError(
                    f"{self.what}: {name} has different weights for {some(found)}, which the network shares: it was "
                    "saved from another network"
                )
        self.say_new(name, new)


def _of_other_size(own: Tensor, found: Tensor) -> bool:
    return not is_lazy(own) and own.shape != found.shape


def _by_weight(model: nn.Module) -> list[list[str]]:
    """The names of each weight: several if layers share it."""
    names: dict[object, list[str]] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        unplaced = is_lazy(weight) or not weight.numel()
        place = name if unplaced else (weight.data_ptr(), *weight.shape, *weight.stride())
        names.setdefault(place, []).append(name)
    return list(names.values())
