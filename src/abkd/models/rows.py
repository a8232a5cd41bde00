"""The interface of models: reading rows for a view of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.ops import Rows

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Outputs(Generic[R_co]):
    """Outputs of one model for a view of N rows.

    Attributes:
        rows: the final rows; None for a teacher whose rows are not needed.
        features: those that were asked for, by name, one per row: ``[N, ...]``. "hidden.k" is the k-th hidden state of
            a transformer (0: the embeddings; negative: from the end, -1 the input of the head), any other name the
            path of a module, of which the (first) output is taken.
    """

    rows: R_co
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def first(self, classes: int | None) -> Outputs[R_co]:
        """The same with the rows over the first ``classes`` classes; None: over all of them."""
        rows: Any = self.rows
        return self if classes is None or rows is None else Outputs(rows.first(classes), self.features)


def has_hooks(model: nn.Module) -> bool:
    """Whether the model has hooks on itself, so that calling it does more than its forward."""
    return bool(model._forward_pre_hooks or model._forward_hooks)


def call_of(model: nn.Module) -> Callable[..., Any]:
    """The callable that is equivalent to ``model(...)``: its forward, or the model itself if it has hooks.

    A student has no hooks (``check_trainable``): wrappers add their own, which run once, around the loss.
    """
    return model if has_hooks(model) else model.forward


class ModelRows(ABC):
    """Reads rows from a model.

    Attributes:
        model: the module.
        forward: the function that runs it (:func:`call_of`), from before it is wrapped.
        classes: how many of its classes are used (None: all).
        dense_because: why its logits are read, where hidden states and head would otherwise be.
        auxiliary_loss: the model's own term to add to the loss of the last rows, if any.
    """

    model: Any
    forward: Callable[..., Any]
    classes: int | None = None
    dense_because: str | None = None
    auxiliary_loss: Tensor | None = None

    @property
    @abstractmethod
    def head_rows(self) -> int:
        """The number of classes of the model's own head."""

    @abstractmethod
    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Rows]:
        """The rows that ``view`` selects, ``Projected`` ``[N, H]`` or ``Dense`` ``[N, V]``, and their features.

        Args:
            stop: only the features are needed: stop after the last of them, and return no rows.

        Raises:
            ConfigError: a feature does not exist.
        """

    def __call__(self, view: View) -> Rows:
        """The rows alone."""
        return self.read(view).rows

    @abstractmethod
    def probe(self) -> View:
        """A small view that the model can read, for :meth:`feature_shapes`."""

    def feature_shapes(self, features: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shape of each feature of one row, found by running the model on a small view.

        Raises:
            ConfigError: a feature does not exist, or is not a tensor with one entry per row.
        """
        if not features:
            return {}
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                found = self.read(self.probe(), features).features
        finally:
            self.model.train(training)
        return {name: tuple(value.shape[1:]) for name, value in found.items()}

    @abstractmethod
    def check(self) -> None:
        """Verify that the rows match the model's own output, where that can be verified."""

    @abstractmethod
    def of(self, model: nn.Module) -> ModelRows:
        """The same for another model of the same kind."""
