"""Weighted sums of divergences, such as WSD and Jeffreys' divergence."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd.divergences._alpha_beta import ForwardKL, ReverseKL
from abkd.divergences._batch import DIST
from abkd.divergences._dkd import DKD
from abkd.divergences._pointwise import Divergence, Number, Pointwise
from abkd.divergences._transforms import Standardized
from abkd.errors import ConfigError


@dataclass(frozen=True, init=False, repr=False)
class WeightedSum(Divergence):
    """``Σ_k weight_k · D_k``: ``WeightedSum((0.5, ForwardKL()), (0.5, ReverseKL()))`` is half of Jeffreys' divergence.

    Any divergences can be added up. The sum needs what any of its parts needs (labels, the full distribution, all rows
    of a batch), and is a ``Pointwise`` divergence if all of them are.

    Raises:
        ConfigError: no parts, a weight that is not a finite number > 0, or a part that is not a divergence.
    """

    parts: tuple[tuple[float, Divergence], ...]

    def __new__(cls, *parts: tuple[float, Divergence]) -> WeightedSum:
        checked = tuple(_checked(part) for part in parts)
        if not checked:
            raise ConfigError("WeightedSum needs parts, as in WeightedSum((0.5, ForwardKL()), (0.5, ReverseKL()))")
        made = object.__new__(_PointwiseSum if all(isinstance(part, Pointwise) for _, part in checked) else WeightedSum)
        object.__setattr__(made, "parts", checked)
        broken = {law: reason for _, part in checked for law, reason in part.exempt.items()}
        object.__setattr__(made, "exempt", broken)
        return made

    def __reduce__(self) -> tuple[type[WeightedSum], tuple[tuple[float, Divergence], ...]]:
        return WeightedSum, self.parts

    def __repr__(self) -> str:
        return f"WeightedSum({', '.join(f'({weight!r}, {part!r})' for weight, part in self.parts)})"

    @property
    def needs_float64(self) -> bool:
        return any(part.needs_float64 for _, part in self.parts)

    @property
    def needs_full_distribution(self) -> bool:
        return any(part.needs_full_distribution for _, part in self.parts)

    @property
    def needs_targets(self) -> bool:
        return any(part.needs_targets for _, part in self.parts)

    @property
    def batch_axis(self) -> bool:
        return any(part.batch_axis for _, part in self.parts)

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        # widened first: the slopes of the parts are added up, and each would be rounded to 16 bits
        dtype = torch.promote_types(torch.promote_types(log_p.dtype, log_q.dtype), torch.float32)
        log_p, log_q = log_p.to(dtype), log_q.to(dtype)
        first, *rest = (weight * part.rows(log_p, log_q, targets) for weight, part in self.parts)
        return sum(rest, start=first)

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (
            cls((0.5, ForwardKL()), (0.5, ReverseKL())),
            cls((0.5, ForwardKL()), (2.0, Standardized(DKD()))),
            cls((0.5, DIST()), (0.5, ReverseKL())),
        )


@dataclass(frozen=True, init=False, repr=False)
class _PointwiseSum(Pointwise, WeightedSum):
    """A sum whose parts are all sums over classes, so that it is one, too."""

    parts: tuple[tuple[float, Pointwise], ...]

    @property
    def params(self) -> tuple[float, ...]:
        return tuple(n for weight, part in self.parts for n in (weight, *part.params))

    @property
    def kind(self) -> tuple[object, ...]:
        return (type(self), *(part.kind for _, part in self.parts))

    @property
    def native(self) -> str | None:
        lines, at = ["    REAL sum = 0, sum_slope = 0;"], 0
        for _, part in self.parts:
            if part.native is None:
                return None
            body = _shifted(part.native, at + 1)
            lines += [
                f"    {{ REAL term, slope; {body}",
                f"    sum += k[{at}] * term, sum_slope += k[{at}] * slope; }}",
            ]
            at += 1 + len(part.params)
        return "\n".join([*lines, "    term = sum, slope = sum_slope;"])

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        term: Tensor | float = 0.0
        slope: Tensor | float = 0.0
        at = 0
        for _, part in self.parts:
            size = len(part.params)
            part_term, part_slope = part.value_and_slope(log_p, log_q, params[at + 1 : at + 1 + size])
            term, slope = term + params[at] * part_term, slope + params[at] * part_slope
            at += 1 + size
        assert isinstance(term, Tensor)
        assert isinstance(slope, Tensor)
        return term, slope

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        first, *rest = (weight * part.teacher_slope(log_p, log_q) for weight, part in self.parts)
        return sum(rest, start=first)


def _shifted(native: str, by: int) -> str:
    """The C code of a part, with the indices of its parameters shifted to their place in the sum."""
    return re.sub(r"\bk\[(\d+)\]", lambda found: f"k[{int(found[1]) + by}]", native)


def _checked(part: object) -> tuple[float, Divergence]:
    if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[1], Divergence)):
        raise ConfigError(f"WeightedSum: a part must be (weight, divergence), as in (0.5, ForwardKL()), got {part!r}")
    weight, divergence = part
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not (0 < weight < math.inf):
        raise ConfigError(f"WeightedSum: the weight of {divergence!r} must be a finite number > 0, got {weight!r}")
    return float(weight), divergence
