"""Rows and heads: how a model's predictions reach the op without their logits being built."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Projected:
    """Rows given by hidden states ``[N, H]`` and the head that would make their logits."""

    hidden: Tensor
    head: Head

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def classes(self) -> int:
        return len(self.head.weight)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.hidden, *self.head[:3]) if isinstance(t, Tensor))

    def logits(self, rows: slice | Tensor) -> Tensor:
        """The logits ``[n, V]`` of some rows."""
        return self.head.logits(self.hidden[rows])

    def to(self, dtype: torch.dtype) -> Projected:
        """The same rows, to be multiplied in another dtype."""
        return Projected(self.hidden.to(dtype), self.head.to(dtype))

    def detach(self) -> Projected:
        """The same rows as constants."""
        head = self.head
        bias = None if head.bias is None else head.bias.detach()
        scale = head.scale.detach() if isinstance(head.scale, Tensor) else head.scale
        return Projected(self.hidden.detach(), Head(head.weight.detach(), bias, scale, head.softcap))

    def first(self, classes: int) -> Projected:
        """The same rows over the first ``classes`` classes."""
        return Projected(self.hidden, self.head.first(classes))


@dataclass(frozen=True, slots=True)
class Dense:
    """Rows given by their logits ``[N, V]`` themselves: small outputs, or a head that is no matrix."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def classes(self) -> int:
        return self.values.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def logits(self, rows: slice | Tensor) -> Tensor:
        """The logits ``[n, V]`` of some rows."""
        return self.values[rows]

    def to(self, dtype: torch.dtype) -> Dense:
        """The same rows in another dtype."""
        return Dense(self.values.to(dtype))

    def detach(self) -> Dense:
        """The same rows as constants."""
        return Dense(self.values.detach())

    def first(self, classes: int) -> Dense:
        """The same rows over the first ``classes`` classes."""
        return Dense(self.values[:, :classes])


Rows = Projected | Dense


@dataclass(frozen=True, slots=True)
class Plan:
    """How the op is carried out; part of a run's record, because another plan rounds differently.

    Attributes:
        rows_per_chunk: rows whose logits exist at the same time.
        compiled: whether the element-wise work is fused: by our own C on a CPU, by ``torch.compile`` on a GPU.
    """

    rows_per_chunk: int
    compiled: bool


@dataclass(frozen=True, slots=True)
class RowLosses:
    """What the op returns. Only ``loss`` carries a gradient; rows without weight were not computed and read 0.

    Attributes:
        loss: scalar ``Σ_n w_n·(ce_weight·CE_n + kd_weight·D_n) / total_weight``.
        divergence, student_entropy, teacher_entropy: ``[N]`` in nats, at the given temperature.
        cross_entropy: ``[N]`` in nats at temperature 1, or None without targets.
        agreement: ``[N]`` 1 where teacher and student share a likeliest class.
        weight: ``[N]`` the row weights that were used.
        plan: how it was carried out (None for ``impl="reference"``).
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor | None
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    weight: Tensor
    plan: Plan | None = None
