"""What is asked of a classifier that is loaded by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from abkd.errors import ConfigError, VocabularyError

logger = logging.getLogger("abkd")


class Wanted(NamedTuple):
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

    def refuse_head(self, name: str, count: int) -> None:
        """Raise VocabularyError where a model for ``count`` classes must keep its head and cannot."""
        if self.num_classes not in (None, count) and not self.fresh_head:
            raise VocabularyError(
                f"{self.what}: {name} tells {count} classes apart and the data has {self.num_classes}. A teacher "
                "cannot be given other classes: take one that was trained on these, or train it on them first "
                "(abkd distill without a teacher)"
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

    def fill(self, model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
        """Load weights that were trained for another number of classes, all but those of the head.

        Raises:
            ConfigError: the weights are of another architecture.
        """
        own = model.state_dict()
        new = [key for key in own if key in weights and own[key].shape != weights[key].shape]
        if set(weights) - set(own) or any(own[key].shape[1:] != weights[key].shape[1:] for key in new):
            raise ConfigError(f"{self.what}: the weights of {name} are those of another architecture")
        model.load_state_dict({key: value for key, value in weights.items() if key not in new}, strict=False)
        self.say_new(name, new)
