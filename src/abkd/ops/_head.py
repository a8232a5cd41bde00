"""Heads: from hidden states to logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """The map from hidden states to logits: ``softcap(scale · (hidden @ weight.T) + bias)``.

    Attributes:
        weight: ``[V, H]``; an LM head, a classifier's ``fc``, or the text features of CLIP's prompts.
        bias: ``[V]`` or None.
        scale: a number or a 0-d tensor (CLIP's and Cohere's logit scale, 1 / Granite's ``logits_scaling``).
        softcap: ``c`` in ``c·tanh(z/c)`` (Gemma), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """``[n, H] -> [n, V]`` in the dtype of the product; into ``out`` if given, but without autograd."""
        if out is not None:
            return self._write(hidden, out)
        logits = hidden @ self.weight.T
        if isinstance(self.scale, Tensor) or self.scale != 1.0:
            logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def _write(self, hidden: Tensor, out: Tensor) -> Tensor:
        torch.mm(hidden, self.weight.T, out=out)
        if isinstance(self.scale, Tensor) or self.scale != 1.0:
            out.mul_(self.scale)
        if self.bias is not None:
            out.add_(self.bias)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    def to(self, dtype: torch.dtype) -> Head:
        """The head in another dtype."""
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def first(self, classes: int) -> Head:
        """The head of the first ``classes`` classes (a view: the gradient reaches the whole weight)."""
        if classes == len(self.weight):
            return self
        return self._replace(weight=self.weight[:classes], bias=None if self.bias is None else self.bias[:classes])
