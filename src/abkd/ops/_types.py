"""Rows: how a model's predictions reach the op without building their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from abkd.errors import ConfigError, VocabularyError
from abkd.ops._head import Head


@dataclass(frozen=True, slots=True)
class Projected:
    """Rows given by hidden states ``[N, H]`` and the head that maps them to logits."""

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
        """The same rows, with the head product in another dtype."""
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
    """Rows given by their logits ``[N, V]``: for small outputs, or a head that is not a matrix."""

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
"""The rows of a model."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """Rows of an ensemble: the mean of its members' predictions, computed chunk by chunk; only for a teacher.

    Attributes:
        parts: the members' rows, with the same N and V.
        of: "probabilities" (each member's at the temperature of the divergence: ``p = mean_i softmax(z_i/T)``) or
            "logits" (``p = softmax(mean_i z_i/T)``, the members' geometric mean).

    Raises:
        ConfigError: there are no parts, they have different numbers of rows, or ``of`` is another value.
        VocabularyError: the parts have different numbers of classes.
    """

    parts: tuple[Rows, ...]
    of: Literal["probabilities", "logits"] = "probabilities"

    def __post_init__(self) -> None:
        if not self.parts or self.of not in ("probabilities", "logits"):
            wanted = "Averaged needs at least one part and of='probabilities' or of='logits'"
            raise ConfigError(f"{wanted}, got {len(self.parts)} parts and of={self.of!r}")
        if len({len(part) for part in self.parts}) > 1:
            raise ConfigError(f"the parts must have the same number of rows, got {[len(part) for part in self.parts]}")
        if len({part.classes for part in self.parts}) > 1:
            raise VocabularyError(
                f"the parts have {[part.classes for part in self.parts]} classes: cut their heads to the classes that "
                "they share (Head.first(n)); never pad logits, padding would receive probability"
            )

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def classes(self) -> int:
        return self.parts[0].classes

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    def detach(self) -> Averaged:
        """The same rows as constants."""
        return replace(self, parts=tuple(part.detach() for part in self.parts))

    def first(self, classes: int) -> Averaged:
        """The same rows over the first ``classes`` classes."""
        return replace(self, parts=tuple(part.first(classes) for part in self.parts))


@dataclass(frozen=True, slots=True)
class TopK:
    """Rows of a teacher of which only the top-k classes are known; all others form one class, the tail.

    The divergence is taken between the two models' distributions over these k+1 classes. The tail is a bucket: for
    ``AlphaBeta`` with α+β <= 1 and for every f-divergence (Jensen-Shannon, the skew KLs, total variation) the value is
    a lower bound of that over all V classes and grows with k; at k = V it is that value. Where α+β > 1 it may be
    larger: ``AlphaBeta(1, 1)`` is half the squared distance, which for p = (.6, .2, .2) and q = (.4, .3, .3) is .03
    over the three classes, but .04 with the last two in one bucket.

    Attributes:
        ids: int64 ``[N, k]``, distinct within a row, the most probable class first.
        log_p: ``[N, k]`` their log-probabilities, already at the temperature of the divergence, which then divides only
            the student's logits.
        log_tail: ``[N]`` log-probability of all other classes together, ``-inf`` for 0; ignored for k = V.
        classes: V.
        log_target: ``[N]`` log-probability of the row's target at temperature 1, for ``row_metrics``; None: that
            in ``log_p`` if the target is among the top k, otherwise ``log_tail``.
    """

    ids: Tensor
    log_p: Tensor
    log_tail: Tensor
    classes: int
    log_target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> TopK:
        return self._each(lambda tensor: tensor[rows])

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.log_p, self.log_tail

    def detach(self) -> TopK:
        """The same rows as constants."""
        return self._each(Tensor.detach)

    def _each(self, function: Callable[[Tensor], Tensor]) -> TopK:
        log_target = None if self.log_target is None else function(self.log_target)
        return TopK(function(self.ids), function(self.log_p), function(self.log_tail), self.classes, log_target)


TeacherRows = Rows | Averaged | TopK
"""The rows of a teacher."""


def own_tensors(rows: TeacherRows) -> tuple[Tensor, ...]:
    """The tensors of length N that belong to these rows; heads belong to the models."""
    match rows:
        case Projected():
            return (rows.hidden,)
        case Dense():
            return (rows.values,)
        case Averaged():
            return tuple(tensor for part in rows.parts for tensor in own_tensors(part))
    known = (rows.ids, rows.log_p, rows.log_tail)
    return known if rows.log_target is None else (*known, rows.log_target)


def with_own_tensors(rows: TeacherRows, own: Sequence[Tensor]) -> TeacherRows:
    """The same rows with other tensors in place of their ``own_tensors``."""
    match rows:
        case Projected() | Dense():
            return _with_own(rows, own[0])
        case Averaged():
            parts = zip(rows.parts, own, strict=True)
            return replace(rows, parts=tuple(_with_own(part, tensor) for part, tensor in parts))
    ids, log_p, log_tail, *log_target = own
    return TopK(ids, log_p, log_tail, rows.classes, *log_target)


def _with_own(rows: Rows, own: Tensor) -> Rows:
    return Dense(own) if isinstance(rows, Dense) else Projected(own, rows.head)


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How the op is executed; part of a run's record, because another plan rounds differently.

    Attributes:
        rows_per_chunk: rows whose logits exist at the same time.
        compiled: whether the element-wise work is fused: by C code on a CPU, by ``torch.compile`` on a GPU.
    """

    rows_per_chunk: int
    compiled: bool


@dataclass(frozen=True, slots=True)
class RowLosses:
    """The result of the op. Only ``loss`` has a gradient; rows with weight 0 are not computed, and their values are 0.

    Attributes:
        loss: scalar ``Σ_n w_n·(ce_weight·CE_n + kd_weight·D_n) / total_weight``.
        divergence, student_entropy, teacher_entropy: ``[N]`` in nats, at the (row's) temperature. For a ``TopK``
            teacher the entropy is that of its k+1 classes, a lower bound.
        cross_entropy: ``[N]`` in nats at temperature 1, or None without targets.
        agreement: ``[N]`` 1 where teacher and student share a top class.
        weight: ``[N]`` the row weights that were used.
        plan: the plan that was used (None for ``impl="reference"``).
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor | None
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    weight: Tensor
    plan: ChunkPlan | None = None
