"""Mode covering and mode seeking: a single mode fitted to two, with every divergence.

The reference values are from notes on f-DISTILL (arXiv 2307.15190), up to the resolution of their grid.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from abkd import AlphaBeta, Divergence, ForwardKL, Hellinger, JensenShannon, ReverseKL, TotalVariation

POSITIONS = torch.linspace(-3, 3, 41, dtype=torch.float64)
CENTRES = torch.linspace(-2, 2, 81, dtype=torch.float64)
WIDTHS = torch.logspace(math.log10(0.2), math.log10(3), 80, dtype=torch.float64)


class Fit(NamedTuple):
    """The closest student, how unlikely it finds the teacher's text (r_cvg), and the teacher its text (r_llh)."""

    centre: float
    width: float
    r_cvg: float
    r_llh: float


def bump(centre: Tensor | float, width: Tensor | float) -> Tensor:
    """``[..., 41]``, 1 at its top."""
    return -((POSITIONS - centre) ** 2) / (2 * width**2)


@cache
def teacher() -> Tensor:
    return torch.log(bump(-1.5, 0.35).exp() + 0.8 * bump(1.5, 0.35).exp() + math.exp(-6)).log_softmax(-1)


@cache
def students() -> Tensor:
    return bump(CENTRES[:, None, None], WIDTHS[:, None]).log_softmax(-1)


@cache
def fitted(divergence: Divergence) -> Fit:
    log_p, log_q = teacher(), students()
    row, column = divmod(int(divergence(log_p.expand_as(log_q), log_q).argmin()), len(WIDTHS))
    best = log_q[row, column]
    r_cvg, r_llh = -(log_p.exp() * best).sum().item(), -(best.exp() * log_p).sum().item()
    return Fit(CENTRES[row].item(), WIDTHS[column].item(), r_cvg, r_llh)


COVERS = Fit(-0.3, 2.12, 3.67, 5.06)
SEEKS = Fit(-1.5, 0.355, 18.2, 2.87)


@pytest.mark.parametrize(
    ("divergence", "wanted"),
    [
        (ForwardKL(), COVERS),
        (AlphaBeta(0.8, 0.2), COVERS),
        (Hellinger(), COVERS),
        (TotalVariation(), Fit(-1.37, 0.62, 7.3, 3.78)),
        (JensenShannon(), SEEKS),
        (ReverseKL(), SEEKS),
        (AlphaBeta(0.2, 0.8), SEEKS),
        (AlphaBeta(0.2, 0.7), Fit(-1.5, 0.347, 18.95, 2.85)),
    ],
    ids=repr,
)
def test_what_each_divergence_fits(divergence: Divergence, wanted: Fit) -> None:
    found = fitted(divergence)
    assert found.centre == pytest.approx(wanted.centre, abs=0.051)  # a step of the grid
    assert found.width == pytest.approx(wanted.width, rel=0.035)
    assert found.r_cvg == pytest.approx(wanted.r_cvg, rel=0.03)
    assert found.r_llh == pytest.approx(wanted.r_llh, rel=0.01)


def test_forward_kl_answers_for_the_teachers_text_reverse_kl_for_its_own_and_total_variation_lies_between() -> None:
    forward, between, reverse = (fitted(each) for each in (ForwardKL(), TotalVariation(), ReverseKL()))
    assert forward.r_cvg < between.r_cvg / 1.5 < reverse.r_cvg / 3
    assert forward.r_llh > between.r_llh + 1 > reverse.r_llh + 1.5
    every = -(teacher().exp() * students()).sum(-1)
    assert forward.r_cvg == every.min().item()  # it minimises just this; reverse KL minimises r_llh less an entropy


def test_alpha_beta_switches_once_from_seeking_to_covering() -> None:
    """On α + β = 1, near α = 0.43; there is nothing in between."""
    widths = [fitted(AlphaBeta(step / 20, 1 - step / 20)).width for step in range(21)]
    assert all(width < 0.4 for width in widths[:9])
    assert all(width > 2 for width in widths[9:])
