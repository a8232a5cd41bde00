"""Divergences with a batch axis: they also compare how the rows of a batch relate to each other, class by class.

The batch-level part has the same value in every row, so that the mean over the rows is the published loss. It depends
on which rows share a batch: the loss of two half batches differs from that of the whole.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from abkd.divergences._full_distribution import FullDistribution, check_weights

_LEVEL = 1e-24  # deviations from the mean below this fraction of a vector's squared norm are rounding errors


class BatchDivergence(FullDistribution):
    """The sum of a per-row part and a batch-level part."""

    @property
    def batch_axis(self) -> bool:
        return True

    @abstractmethod
    def of_rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The per-row part, ``[N, V], [N, V] -> [N]``."""

    @abstractmethod
    def of_batch(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The batch-level part, ``[N, V], [N, V] -> []`` for ``N > 1``; a batch of one has nothing to compare."""

    def exact(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None) -> Tensor:
        shape, classes = log_q.shape[:-1], log_q.shape[-1]
        log_p, log_q = log_p.reshape(-1, classes), log_q.reshape(-1, classes)
        value = self.of_rows(log_p, log_q)
        if len(log_q) > 1:
            value = value + self.of_batch(log_p, log_q)
        return value.reshape(shape)


@dataclass(frozen=True)
class DIST(BatchDivergence):
    """``inter · mean_n(1 - ρ(p_n, q_n)) + intra · mean_v(1 - ρ(p_·v, q_·v))`` (DIST, arXiv 2205.10536).

    ρ is Pearson's correlation of probabilities: over the classes of a row, and over the batch for each class. The loss
    is 0 where the student is an increasing affine function of the teacher.

    A constant vector (all classes equally likely, or a class equally likely in all rows of the batch) has correlation
    0 (and zero gradient) with a vector that varies, and 1 with another constant one. In a batch of one the second part
    is 0. The second part depends on which rows share a batch; the published loss is multiplied by the squared
    temperature (``scale_by_temperature_squared``).

    Raises:
        ConfigError: a weight is not a finite number >= 0, or both are 0.
    """

    inter: float = 1.0
    intra: float = 1.0
    exempt: ClassVar[dict[str, str]] = {
        "positive_where_different": "affine functions of the teacher's probabilities correlate perfectly with them",
        "one_hot_rows": "with two classes, any two rows are affinely related",
        "teacher_is_a_constant_unless_asked": "with two classes, any two rows are affinely related: the slope is 0",
        "classes_impossible_to_both_do_not_matter": "they count in the mean over the classes",
        "rows_are_independent": "the rows of a batch are compared with each other",
    }

    def __post_init__(self) -> None:
        check_weights(self, "inter", "intra")

    def written(self) -> str:
        parts = (self.inter, "(1-ρ of rows)"), (self.intra, "(1-ρ of columns)")
        return f"({' + '.join(f'{weight:g}·{part}' for weight, part in parts if weight)})"

    def of_rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.inter * _uncorrelated(log_p, log_q, -1)

    def of_batch(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.intra * _uncorrelated(log_p, log_q, 0).mean()


@dataclass(frozen=True)
class CLKD(BatchDivergence):
    """``instances · |p̂_n - q̂_n|² + classes · mean_v |p̂_·v - q̂_·v|² + correlation · |R_p - R_q|² / V²``.

    Class-aware logit distillation (CLKD, arXiv 2211.14773) on probabilities: ``p̂_n`` is a row normalised to length 1,
    ``p̂_·v`` a column (a class over the batch) likewise, and ``R`` ``[V, V]`` holds Pearson's correlations of the
    classes over the batch. Re-implementations of the paper compare logits and their covariances; here nothing depends
    on a shift of a row's logits, which log-probabilities do not determine, or on a scale, so weights do not carry over.

    A class that is constant over the batch has correlation 0 with every class. In a batch of one only the first part
    remains. The other two depend on which rows share a batch.

    Raises:
        ConfigError: a weight is not a finite number >= 0, or all are 0.
    """

    instances: float = 1.0
    classes: float = 1.0
    correlation: float = 1.0
    exempt: ClassVar[dict[str, str]] = {
        "rows_are_independent": "the rows of a batch are compared with each other",
        "classes_impossible_to_both_do_not_matter": "they count in the means over the classes",
    }

    def __post_init__(self) -> None:
        check_weights(self, "instances", "classes", "correlation")

    def written(self) -> str:
        names = ("instances", "|unit rows|²"), ("classes", "|unit columns|²"), ("correlation", "|correlations|²")
        parts = ((getattr(self, name), part) for name, part in names)
        return f"({' + '.join(f'{weight:g}·{part}' for weight, part in parts if weight)})"

    def of_rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.instances * (_unit(log_p, -1) - _unit(log_q, -1)).square().sum(-1)

    def of_batch(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        columns = (_unit(log_p, 0) - _unit(log_q, 0)).square().sum(0).mean()
        of_p, of_q = (x.T @ x for x in (_deviations(side, 0)[0] for side in (log_p, log_q)))
        return self.classes * columns + self.correlation * (of_p - of_q).square().mean()


def _unit(log_x: Tensor, dim: int) -> Tensor:
    """``x / |x|`` along ``dim``, from logarithms, so that nothing underflows; 0 where ``x`` is 0."""
    none = (log_x == -torch.inf).all(dim, keepdim=True)  # the gradient of the sum would be NaN
    log_square = (2.0 * log_x).masked_fill(none, 0.0).logsumexp(dim, keepdim=True)
    return (log_x - 0.5 * log_square).exp()


def _deviations(log_x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``x`` minus its mean along ``dim``, normalised to length 1 (0 where ``x`` is constant); and whether it varies."""
    unit = _unit(log_x, dim)
    away = unit - unit.mean(dim, keepdim=True)
    square = away.square().sum(dim, keepdim=True)
    varies = square > _LEVEL
    return away * square.masked_fill(~varies, torch.inf).rsqrt(), varies.squeeze(dim)


def _uncorrelated(log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """``1 - ρ(p, q)`` along ``dim``, as half a squared distance: exactly 0 where both are equal."""
    (p, p_varies), (q, q_varies) = _deviations(log_p, dim), _deviations(log_q, dim)
    return 0.5 * (p - q).square().sum(dim) + 0.5 * (p_varies != q_varies).to(p.dtype)
