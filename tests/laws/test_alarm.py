"""The laws detect a divergence that breaks them, and cover a new one automatically."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import family_laws  # noqa: F401 - writes the laws into the book
import pytest
import torch
from hypothesis import Phase, given, settings
from law_book import LAWS, applicable, family, rows
from torch import Tensor

import abkd.divergences
from abkd.divergences import Divergence, ForwardKL


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return ForwardKL().rows(log_p, log_q)


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """Not 0 at p = q, like the published "forward KL" of many repositories."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return -(log_p.exp() * log_q).sum(-1)


@dataclass(frozen=True)
class Signed(Divergence):
    """Swaps signs: negative for half of all rows."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return (log_q.exp() - log_p.exp())[..., 0]


@dataclass(frozen=True)
class TopClassOnly(Divergence):
    """0 for some rows that differ."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return ((log_p.exp() - log_q.exp()) ** 2 * (log_p > -0.3)).sum(-1)


@dataclass(frozen=True)
class Ordered(Divergence):
    """Depends on the index of a class."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        number = torch.arange(log_p.shape[-1], dtype=log_p.dtype)
        return ((1 + number) * (log_p.exp() - log_q.exp()) ** 2).sum(-1)


class _WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        ctx.save_for_backward(log_p)
        return kl(log_p, log_q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (log_p,) = ctx.saved_tensors
        slope = -0.5 * log_p.exp() * grads[0][..., None]
        return slope, slope


@dataclass(frozen=True)
class HalfTheGradient(Divergence):
    """The right value with half of its slope: what a wrong constant in a closed form does."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return _WrongSlope.apply(log_p, log_q)


@dataclass(frozen=True)
class Powers(Divergence):
    """α-β (0.2, 0.7) as printed: NaN gradients at probability 0, cancellation near p = q."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        p, q, a, b = log_p.exp(), log_q.exp(), 0.2, 0.7
        s = a + b
        return -(p**a * q**b - a / s * p**s - b / s * q**s).sum(-1) / (a * b)


@dataclass(frozen=True)
class Leaky(Divergence):
    """Passes gradients to the teacher."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return ((log_p.exp() - log_q.exp()) ** 2).sum(-1)

    def __call__(
        self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None, *, teacher_grad: bool = False
    ) -> Tensor:
        return self.rows(log_p, log_q)


@dataclass(frozen=True)
class OneNumber(Divergence):
    """Sums over the rows of a batch."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return ((log_p.exp() - log_q.exp()) ** 2).sum()


@dataclass(frozen=True)
class OnLogits(Divergence):
    """Treats its input as logits of any scale: infinite minus infinite at impossible classes."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return ((log_p - log_q) ** 2).mean(-1)


@dataclass(frozen=True)
class Blindfolded(Divergence):
    """KL that ignores the classes where it is infinite."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        seen = log_p.isfinite() & log_q.isfinite()
        return torch.where(seen, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


@dataclass(frozen=True)
class StaysHalf(Divergence):
    """Computes in the precision of its input."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


@dataclass(frozen=True)
class Sloppy(Divergence):
    """Subtracts 1 from numbers close to 1 in float32."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return (2 - 2 * (0.5 * (log_p + log_q)).exp().sum(-1)).abs()


class Mutable(Divergence):
    """Not a frozen value."""

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return ((log_p.exp() - log_q.exp()) ** 2).sum(-1)


BROKEN = [
    (CrossEntropy(), "zero_where_equal"),
    (CrossEntropy(), "equal_everywhere"),
    (Blindfolded(), "a_class_impossible_to_one_is_a_limit"),
    (Signed(), "never_negative"),
    (Signed(), "one_hot_rows"),
    (TopClassOnly(), "positive_where_different"),
    (Ordered(), "blind_to_the_order_of_classes"),
    (Ordered(), "classes_impossible_to_both_do_not_matter"),
    (HalfTheGradient(), "gradient_is_smooth_where_equal"),
    (HalfTheGradient(), "gradient_is_the_central_difference"),
    (HalfTheGradient(), "gradient_passes_gradcheck"),
    (HalfTheGradient(), "teacher_gradient_passes_gradcheck"),
    (Powers(), "never_nan"),
    (Powers(), "gradient_sums_to_zero"),
    (Powers(), "float32_is_as_good_as_float64"),
    (Leaky(), "teacher_is_a_constant_unless_asked"),
    (Leaky(), "unequal_shapes_are_refused"),
    (OneNumber(), "rows_are_independent"),
    (OnLogits(), "never_nan"),
    (StaysHalf(), "half_precision_is_widened"),
    (Sloppy(), "zero_where_equal"),
    (Sloppy(), "float32_is_as_good_as_float64"),
    (Mutable(), "it_is_a_value"),
]


@pytest.mark.parametrize(("toy", "name"), BROKEN, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_a_divergence_that_breaks_a_law_is_caught(toy: Divergence, name: str) -> None:
    law = LAWS[name]

    @settings(phases=[Phase.generate], report_multiple_bugs=False)
    @given(rows(law.kinds))
    def search(pair: tuple[Tensor, Tensor]) -> None:
        law.check(toy, *pair)

    # Raised by the law itself, by gradcheck, by torch, or by the notation, which does not know the toy.
    with pytest.raises((AssertionError, RuntimeError, ValueError, pytest.fail.Exception)):
        search()


def test_a_new_divergence_is_found_without_being_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abkd.divergences, "CrossEntropy", CrossEntropy, raising=False)
    monkeypatch.setattr(abkd.divergences, "__all__", [*abkd.divergences.__all__, "CrossEntropy"])
    assert CrossEntropy() in family()
    assert applicable(CrossEntropy()) == list(LAWS)


def test_an_exempted_law_is_left_out() -> None:
    class Exempt(CrossEntropy):
        exempt = {"zero_where_equal": "the entropy of the teacher is kept"}  # noqa: RUF012

    assert "zero_where_equal" not in applicable(Exempt())
    assert len(applicable(Exempt())) == len(LAWS) - 1
