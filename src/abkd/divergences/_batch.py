"""Divergences with a batch axis: they also compare how the rows of a batch lie to each other, class by class.

What belongs to the whole batch is the same number in every row, so that the mean over the rows is the published loss.
It depends on which rows share a batch: two halves of a batch give another loss than the whole.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from abkd.divergences._full_distribution import FullDistribution, check_weights

_LEVEL = 1e-24  # below this share of a vector's square its deviations from the mean are rounding


class BatchDivergence(FullDistribution):
    """A part for each row, and a part for all rows together."""

    @property
    def batch_axis(self) -> bool:
        return True

    @abstractmethod
    def of_rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``[N, V], [N, V] -> [N]``."""

    @abstractmethod
    def of_batch(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``[N, V], [N, V] -> []`` for ``N > 1``; in a batch of one there is nothing to compare."""

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

    ρ is Pearson's correlation of probabilities: over the classes of a row, and over the batch for each class. A student
    is right when it is any increasing straight line of the teacher.

    What does not vary (all classes, or a class in all rows of the batch, equally likely) has the correlation 0 with
    what does, without a slope, and 1 with what does not either. In a batch of one the second part is 0. The second part
    depends on which rows share a batch; the published loss is times the square of the temperature
    (``scale_by_temperature_squared``).

    Raises:
        ConfigError: a weight is not a finite number of at least 0, or both are 0.
    """

    inter: float = 1.0
    intra: float = 1.0
    formula: ClassVar[str] = "mean(1-ρ) of rows + mean(1-ρ) of columns"
    exempt: ClassVar[dict[str, str]] = {
        "positive_where_different": "probabilities on a straight line of the teacher's are perfectly correlated",
        "one_hot_rows": "of two classes, any two rows lie on a straight line",
        "teacher_is_a_constant_unless_asked": "of two classes, any two rows lie on a straight line: there is no slope",
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

    Class-aware logit distillation (CLKD, arXiv 2211.14773) on probabilities: ``p̂_n`` is a row made a vector of length
    1, ``p̂_·v`` a column (a class over the batch) likewise, and ``R`` ``[V, V]`` holds Pearson's correlations of the
    classes over the batch. Re-implementations of the paper compare logits and their covariances; here nothing depends
    on the shift of a row's logits, which log-probabilities do not tell, or on a scale. So weights do not carry over.

    A class that does not vary over the batch has correlation 0 with all. In a batch of one only the first part is left.
    The other two depend on which rows share a batch.

    Raises:
        ConfigError: a weight is not a finite number of at least 0, or all are 0.
    """

    instances: float = 1.0
    classes: float = 1.0
    correlation: float = 1.0
    formula: ClassVar[str] = "|p̂_n - q̂_n|² + mean|p̂_·v - q̂_·v|² + |R_p - R_q|²/V²"
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
    """``x / |x|`` along ``dim``, from logarithms, so that nothing is too small; 0 where ``x`` is 0."""
    none = (log_x == -torch.inf).all(dim, keepdim=True)  # the sum would have the slope NaN
    log_square = (2.0 * log_x).masked_fill(none, 0.0).logsumexp(dim, keepdim=True)
    return (log_x - 0.5 * log_square).exp()


def _deviations(log_x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``x`` off its mean along ``dim``, made a vector of length 1, or 0 where it does not vary; and if it does."""
    unit = _unit(log_x, dim)
    away = unit - unit.mean(dim, keepdim=True)
    square = away.square().sum(dim, keepdim=True)
    varies = square > _LEVEL
    return away * square.masked_fill(~varies, torch.inf).rsqrt(), varies.squeeze(dim)


def _uncorrelated(log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """``1 - ρ(p, q)`` along ``dim``, as half of a squared distance: exactly 0 where both are equal."""
    (p, p_varies), (q, q_varies) = _deviations(log_p, dim), _deviations(log_q, dim)
    return 0.5 * (p - q).square().sum(dim) + 0.5 * (p_varies != q_varies).to(p.dtype)
