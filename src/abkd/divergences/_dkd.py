"""Decoupled knowledge distillation: the label separate from the other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences._alpha_beta import AlphaBeta
from abkd.divergences._full_distribution import FORWARD_KL, Transform, check_inner, check_weights
from abkd.divergences._pointwise import Divergence
from abkd.errors import ConfigError


@dataclass(frozen=True)
class DKD(Transform):
    """``tckd_weight · KL(b_p‖b_q) + nckd_weight · D(p̂‖q̂)``, the label decoupled (DKD, arXiv 2203.08679).

    ``b = (p_t, 1 - p_t)`` is the label against all others, ``p̂ = p_v / (1 - p_t)`` the distribution over these others.
    With the weights 1 and ``1 - p_t`` and ``ForwardKL()`` inside it would be ``KL(p‖q)``. The first part is always KL;
    ``divergence`` sets the second: ``ForwardKL()`` gives DKD, ``AlphaBeta()`` ABDKD.

    It needs ``targets``. Where either side gives the other classes no probability, ``p̂`` or ``q̂`` is undefined and the
    second part is 0.

    Raises:
        ConfigError: a weight is not a finite number >= 0, both are 0, or ``divergence`` is not one that can compare
            the other classes, which differ from row to row.
    """

    divergence: Divergence = FORWARD_KL
    tckd_weight: float = 1.0
    nckd_weight: float = 8.0

    def __post_init__(self) -> None:
        check_inner(self)
        check_weights(self, "tckd_weight", "nckd_weight")
        if self.divergence.needs_targets or self.divergence.batch_axis:
            raise ConfigError(
                f"DKD compares the classes other than the label, which {self.divergence!r} cannot do: nest DKD inside "
                "it, or use a divergence of single rows, such as AlphaBeta(0.8, 0.3)"
            )

    @property
    def needs_targets(self) -> bool:
        return True

    def written(self) -> str:
        parts = (self.tckd_weight, "KL(label)"), (self.nckd_weight, f"[{self.divergence.written()} of the others]")
        inside = " + ".join(f"{weight:g}·{part}" for weight, part in parts if weight)
        return f"({inside})"

    def exact(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        p, q = _decoupled(log_p, targets), _decoupled(log_q, targets)
        none = (p.rest == -torch.inf) | (q.rest == -torch.inf)
        value = log_q.new_zeros(targets.shape)
        if self.tckd_weight:
            value = self.tckd_weight * FORWARD_KL.rows(p.binary(), q.binary())
        if self.nckd_weight and p.others.shape[-1]:
            value = value + self.nckd_weight * self.divergence.rows(p.given(none), q.given(none))
        return value

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return cls(), cls(AlphaBeta(0.8, 0.3), 1.0, 2.0)


class _Decoupled(NamedTuple):
    """Log-probabilities of the label ``[..., 1]``, of all others together, and of each of them ``[..., V-1]``."""

    label: Tensor
    rest: Tensor
    others: Tensor

    def binary(self) -> Tensor:
        """The label against the rest, ``[..., 2]``."""
        return torch.cat([self.label, self.rest], -1)

    def given(self, none: Tensor) -> Tensor:
        """The distribution over the other classes given that it is one of them; uniform where ``none``."""
        given = self.others - self.rest.masked_fill(none, 0.0)
        # impossible classes stay impossible, and their slope, which may be infinite, is dropped
        given = given.masked_fill(self.others == -torch.inf, -torch.inf)
        return given.masked_fill(none, -math.log(self.others.shape[-1]))


def _decoupled(log_x: Tensor, targets: Tensor) -> _Decoupled:
    place = targets[..., None]
    number = torch.arange(log_x.shape[-1] - 1, device=log_x.device)
    others = log_x.gather(-1, number + (number >= place).long())
    none = (others == -torch.inf).all(-1, keepdim=True)  # the gradient of the sum would be NaN
    rest = others.masked_fill(none, 0.0).logsumexp(-1, keepdim=True).masked_fill(none, -torch.inf)
    return _Decoupled(log_x.gather(-1, place), rest, others)
