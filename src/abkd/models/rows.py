"""What every model is to the engine: something that turns a view into rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from abkd.data import View
from abkd.ops import Rows


def has_hooks(model: nn.Module) -> bool:
    """Whether calling the model is more than its forward: it has hooks on itself."""
    return bool(model._forward_pre_hooks or model._forward_hooks)


def call_of(model: nn.Module) -> Callable[..., Any]:
    """What does what ``model(...)`` does: its forward, or with hooks the call as a whole.

    A student has none (``check_trainable``): wrappers put their own on it, which run once, around the loss.
    """
    return model if has_hooks(model) else model.forward


class ModelRows(ABC):
    """Reads rows out of a model.

    ``model``: the module. ``forward``: what runs it (:func:`call_of`), from before anything wraps it. ``classes``: how
    many of its classes are used (None: all). ``dense_because``: why it is read through its logits, where it could be
    otherwise.
    ``auxiliary_loss``: what the model wants to be added to the loss of the rows that were read last, if anything.
    """

    model: Any
    forward: Callable[..., Any]
    classes: int | None = None
    dense_because: str | None = None
    auxiliary_loss: Tensor | None = None

    @property
    @abstractmethod
    def head_rows(self) -> int:
        """Classes of the model's own head."""

    @abstractmethod
    def __call__(self, view: View) -> Rows:
        """The rows that ``view`` selects: ``Projected`` ``[N, H]``, or ``Dense`` ``[N, V]``."""

    @abstractmethod
    def check(self) -> None:
        """Prove that the rows are what the model itself says, where that can be proved."""

    @abstractmethod
    def of(self, model: Any) -> ModelRows:
        """Another model of the same kind, read in the same way."""
