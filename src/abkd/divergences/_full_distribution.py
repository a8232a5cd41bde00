"""Base classes of divergences in float64, and of those that need complete distributions, such as transforms."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from abkd.divergences._alpha_beta import ForwardKL
from abkd.divergences._pointwise import Divergence
from abkd.errors import ConfigError

FORWARD_KL = ForwardKL()  # the divergence that the transforms were published with


class InFloat64(Divergence):
    """A divergence that is computed in float64, whatever the dtype of the rows."""

    @property
    def needs_float64(self) -> bool:
        return True

    @abstractmethod
    def exact(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None) -> Tensor:
        """:meth:`rows` for float64 rows."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(log_p.dtype, log_q.dtype), torch.float32)
        # via float32, so that the gradient of 16-bit rows is that of the same rows in float32
        return self.exact(log_p.to(dtype).double(), log_q.to(dtype).double(), targets).to(dtype)


class FullDistribution(InFloat64):
    """A divergence that needs every class of a row.

    It renormalises rows, which in float32 would cost half of the digits where teacher and student are close.
    """

    @property
    def needs_full_distribution(self) -> bool:
        return True


class Transform(FullDistribution):
    """Another divergence, applied to transformed rows; subclasses hold it in the field ``divergence``."""

    divergence: Divergence

    @property
    def needs_targets(self) -> bool:
        return self.divergence.needs_targets

    @property
    def batch_axis(self) -> bool:
        return self.divergence.batch_axis


def check_inner(owner: Transform) -> None:
    """Raise ConfigError unless the field ``divergence`` is a divergence."""
    if not isinstance(owner.divergence, Divergence):
        title = type(owner).__name__
        raise ConfigError(
            f"{title}: divergence must be a divergence, as in {title}(AlphaBeta(0.8, 0.3)), got {owner.divergence!r}"
        )


def check_positive(owner: Divergence, *names: str) -> None:
    """Raise ConfigError unless these fields are finite numbers > 0; store them as floats."""
    for name in names:
        value = getattr(owner, name)
        if not _is_finite(value) or value <= 0:
            raise ConfigError(f"{type(owner).__name__}: {name} must be a finite number > 0, got {value!r}")
        object.__setattr__(owner, name, float(value))


def check_weights(owner: Divergence, *names: str) -> None:
    """Raise ConfigError unless these fields are finite numbers >= 0 and not all 0; store them as floats."""
    for name in names:
        value = getattr(owner, name)
        if not _is_finite(value) or value < 0:
            raise ConfigError(f"{type(owner).__name__}: {name} must be a finite number >= 0, got {value!r}")
        object.__setattr__(owner, name, float(value))
    if not any(getattr(owner, name) for name in names):
        raise ConfigError(f"{type(owner).__name__} with {' = '.join(names)} = 0 compares nothing; set one above 0")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
