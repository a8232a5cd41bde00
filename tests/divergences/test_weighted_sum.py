"""Sums of any divergences, blends of them over a run, and transforms around them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from abkd import notation
from abkd.divergences import (
    CLKD,
    DIST,
    DKD,
    AlphaBeta,
    Divergence,
    ForwardKL,
    JensenShannon,
    Pointwise,
    ReverseKL,
    Standardized,
    TransformedTeacher,
    WeightedSum,
)
from abkd.errors import ConfigError
from abkd.schedules import anneal

POINTWISE = WeightedSum((0.5, ForwardKL()), (2.0, AlphaBeta(1.2, -0.1)))
MIXED = WeightedSum((0.5, ForwardKL()), (0.5, Standardized()))
LABELLED = WeightedSum((1.0, DKD()), (0.25, JensenShannon()))
TOGETHER = WeightedSum((0.5, DIST()), (0.5, CLKD()), (1.0, ReverseKL()))
NESTED = WeightedSum((2.0, POINTWISE), (1.0, MIXED))
SUMS = [POINTWISE, MIXED, LABELLED, TOGETHER, NESTED]


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    log_p, log_q = torch.log_softmax(2 * torch.randn(2, 7, 11, generator=draw, dtype=torch.float64), -1)
    return log_p, log_q.clone().requires_grad_(), torch.randint(11, (7,), generator=draw)


@pytest.mark.parametrize("divergence", SUMS, ids=repr)
def test_value_and_gradient_are_the_sums_of_the_parts(divergence: WeightedSum) -> None:
    log_p, log_q, targets = rows()
    wanted = torch.stack([weight * part(log_p, log_q, targets) for weight, part in divergence.parts]).sum(0)
    got = divergence(log_p, log_q, targets)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    slopes = (torch.autograd.grad(each.sum(), log_q)[0] for each in (got, wanted))
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


def test_a_sum_needs_what_any_part_needs() -> None:
    def needs(divergence: Divergence) -> tuple[bool, ...]:
        one = divergence
        return one.needs_float64, one.needs_full_distribution, one.needs_targets, one.batch_axis

    assert needs(WeightedSum((1.0, ForwardKL()), (1.0, ReverseKL()))) == (False,) * 4
    assert needs(POINTWISE) == (True, False, False, False)
    assert needs(MIXED) == needs(NESTED) == (True, True, False, False)
    assert needs(LABELLED) == (True, True, True, False)
    assert needs(TOGETHER) == (True, True, False, True)
    assert [isinstance(each, Pointwise) for each in SUMS] == [True, False, False, False, False]
    assert isinstance(WeightedSum((1.0, POINTWISE)), Pointwise)
    assert "rows_are_independent" in TOGETHER.exempt
    with pytest.raises(ConfigError, match="needs the label of each row"):
        LABELLED(*rows()[:2])


@pytest.mark.parametrize("divergence", SUMS, ids=repr)
def test_it_is_a_value_however_it_is_made(divergence: WeightedSum) -> None:
    again = notation.parse(repr(divergence))
    copies = [pickle.loads(pickle.dumps(divergence)), copy.copy(divergence), copy.deepcopy(divergence), again]
    for other in (*copies, type(divergence)(*divergence.parts), type(POINTWISE)(*divergence.parts)):
        assert other == divergence
        assert type(other) is type(divergence)
        assert hash(other) == hash(divergence)
        assert isinstance(other, WeightedSum)
    assert sum(other == divergence for other in SUMS) == 1


@pytest.mark.parametrize("inside", [*SUMS, DIST(), CLKD(), Standardized(DIST()), DKD()], ids=repr)
@pytest.mark.parametrize("transform", [Standardized, TransformedTeacher])
def test_a_transform_takes_any_divergence(transform: type[Divergence], inside: Divergence) -> None:
    log_p, log_q, targets = rows()
    divergence = transform(inside)  # type: ignore[call-arg]
    assert divergence.batch_axis == inside.batch_axis
    assert divergence.needs_targets == inside.needs_targets
    if isinstance(inside, WeightedSum):  # it is linear in what is inside
        each = [weight * transform(part)(log_p, log_q, targets) for weight, part in inside.parts]  # type: ignore[call-arg]
        torch.testing.assert_close(divergence(log_p, log_q, targets), torch.stack(each).sum(0), rtol=1e-12, atol=0)
    assert divergence(log_p, log_q, targets).isfinite().all()
    (slope,) = torch.autograd.grad(divergence(log_p, log_q, targets).sum(), log_q)
    assert slope.isfinite().all()
    assert slope.any()


def test_dkd_takes_any_divergence_of_single_rows_without_labels() -> None:
    log_p, log_q, targets = rows()
    for inside in (POINTWISE, MIXED, NESTED, Standardized(MIXED)):
        assert (DKD(inside)(log_p, log_q, targets) > 0).all()
    each = [weight * DKD(part, 0.0, 1.0)(log_p, log_q, targets) for weight, part in MIXED.parts]
    torch.testing.assert_close(DKD(MIXED, 0.0, 1.0)(log_p, log_q, targets), torch.stack(each).sum(0))
    for inside in (LABELLED, TOGETHER):
        with pytest.raises(ConfigError, match=r"which WeightedSum.* cannot do: nest DKD inside it"):
            DKD(inside)


@pytest.mark.parametrize(
    ("start", "end"), [(ForwardKL(), DKD()), (Standardized(), DIST()), (MIXED, AlphaBeta(0.2, 0.7)), (DIST(), CLKD())]
)
def test_any_two_divergences_are_blended_over_a_run(start: Divergence, end: Divergence) -> None:
    log_p, log_q, targets = rows()
    schedule = anneal(start, end)
    assert schedule(0.0) == start
    assert schedule(1.0) == end
    blend = schedule(0.25)
    assert blend == WeightedSum((0.75, start), (0.25, end))
    wanted = 0.75 * start(log_p, log_q, targets) + 0.25 * end(log_p, log_q, targets)
    torch.testing.assert_close(blend(log_p, log_q, targets), wanted, rtol=1e-12, atol=0)
