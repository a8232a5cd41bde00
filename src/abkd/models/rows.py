"""The interface of models: reading rows for a view of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from abkd.data import View
from abkd.ops import Rows


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
    def __call__(self, view: View) -> Rows:
        """The rows that ``view`` selects: ``Projected`` ``[N, H]``, or ``Dense`` ``[N, V]``."""

    @abstractmethod
    def check(self) -> None:
        """Verify that the rows match the model's own output, where that can be verified."""

    @abstractmethod
    def of(self, model: Any) -> ModelRows:
        """The same for another model of the same kind."""
