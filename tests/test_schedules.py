from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkd.divergences import AlphaBeta, ForwardKL, JensenShannon, ReverseKL, TotalVariation, WeightedSum
from abkd.errors import ConfigError
from abkd.schedules import Schedule, anneal, at, moments_of, stages, values_of

steady = settings(deadline=None, derandomize=True, max_examples=50, database=None)
progress = st.floats(0, 1)
TARGET = AlphaBeta(0.2, 0.7)


def test_the_ends_are_what_was_written() -> None:
    for shape in ("linear", "cosine"):
        schedule = anneal(ForwardKL(), TARGET, shape=shape)
        assert schedule(0.0) == ForwardKL()
        assert isinstance(schedule(0.0), ForwardKL)
        assert schedule(1.0) == TARGET


def test_points_of_the_plane_are_joined_by_a_line() -> None:
    middle = anneal(ForwardKL(), TARGET)(0.5)
    assert type(middle) is AlphaBeta
    assert (middle.alpha, middle.beta) == pytest.approx((0.6, 0.35))


@steady
@given(progress)
def test_shapes(t: float) -> None:
    assert anneal(2.0, 6.0)(t) == pytest.approx(2 + 4 * t)
    assert anneal(2.0, 6.0, shape="cosine")(t) == pytest.approx(2 + 4 * (1 - math.cos(math.pi * t)) / 2)


def test_the_cosine_is_slow_at_both_ends() -> None:
    cosine = anneal(0.0, 1.0, shape="cosine")
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(0.05) < 0.01
    assert cosine(0.95) > 0.99


def test_other_divergences_are_blended() -> None:
    blend = anneal(JensenShannon(), TARGET)(0.25)
    assert blend == WeightedSum((0.75, JensenShannon()), (0.25, TARGET))
    log_p, log_q = torch.log_softmax(torch.randn(2, 3, 8), -1)
    wanted = 0.75 * JensenShannon()(log_p, log_q) + 0.25 * TARGET(log_p, log_q)
    assert torch.allclose(blend(log_p, log_q), wanted)


@steady
@given(progress, progress)
def test_the_loss_moves_without_a_jump(one: float, two: float) -> None:
    log_p, log_q = torch.log_softmax(torch.linspace(-2, 2, 6), -1), torch.log_softmax(torch.linspace(1, -1, 6), -1)
    for schedule in (anneal(ForwardKL(), TARGET), anneal(ReverseKL(), TotalVariation(), shape="cosine")):
        difference = schedule(one)(log_p, log_q) - schedule(two)(log_p, log_q)
        assert abs(difference.item()) <= 10 * abs(one - two) + 1e-5


@pytest.mark.parametrize(("outside", "end"), [(-0.1, 0.0), (-math.inf, 0.0), (1.0 + 1e-9, 1.0), (7.0, 1.0)])
def test_progress_is_clipped(outside: float, end: float) -> None:
    for schedule in (anneal(1.0, 3.0), stages((1, 5.0), (1, anneal(6.0, 8.0)))):
        assert schedule(outside) == schedule(end)


@steady
@given(progress)
def test_pure(t: float) -> None:
    for schedule in (anneal(ForwardKL(), TARGET), stages((0.5, ForwardKL()), (0.5, TARGET))):
        first = schedule(t)
        schedule(0.9)
        assert schedule(t) == first


def test_stages_follow_each_other() -> None:
    schedule = stages((1, ForwardKL()), (1, TARGET), (2, 0.25))
    assert [schedule(t) for t in (0.0, 0.2, 0.25, 0.49, 0.5, 1.0)] == [
        ForwardKL(),
        ForwardKL(),
        TARGET,
        TARGET,
        0.25,
        0.25,
    ]


def test_a_stage_may_be_a_schedule_of_its_own_time() -> None:
    schedule = stages((0.25, 10.0), (0.5, anneal(0.0, 1.0)), (0.25, 20.0))
    assert schedule(0.25) == pytest.approx(0.0)
    assert schedule(0.5) == pytest.approx(0.5)
    assert schedule(0.75 - 1e-9) == pytest.approx(1.0)
    assert schedule(0.75) == 20.0
    assert stages((1, anneal(0.0, 1.0)))(1.0) == 1.0


@steady
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=7), progress)
def test_every_moment_has_one_stage_and_they_come_in_order(shares: list[float], t: float) -> None:
    schedule = stages(*((share, float(index)) for index, share in enumerate(shares)))
    assert schedule(0.0) == 0.0
    assert schedule(1.0) == len(shares) - 1
    assert schedule(t) in range(len(shares))
    assert schedule(t) <= schedule(min(1.0, t + 0.1))


def test_at() -> None:
    assert at(0.3, 0.9) == 0.3
    assert at(TARGET, 0.9) == TARGET
    assert at(anneal(0.0, 2.0), 0.5) == 1.0


SCHEDULES = [
    anneal(ForwardKL(), TARGET, shape="cosine"),
    anneal(1.0, 4),
    stages((0.5, ForwardKL()), (0.5, TARGET)),
    stages((1, 2.0), (1, anneal(JensenShannon(), WeightedSum((1.0, ReverseKL()))))),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_values(schedule: Schedule) -> None:
    names = {name: globals()[name] for name in ("AlphaBeta", "ForwardKL", "JensenShannon", "ReverseKL", "WeightedSum")}
    again = eval(repr(schedule), {"__builtins__": {}}, {**names, "anneal": anneal, "stages": stages})
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again is not schedule
    with pytest.raises(FrozenInstanceError):
        schedule.start = 0  # type: ignore[attr-defined]


def test_anneal_prints_as_it_is_written() -> None:
    written = "anneal(ForwardKL(), AlphaBeta(alpha=0.2, beta=0.7), shape='cosine')"
    assert repr(SCHEDULES[0]) == written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0, 1.0, "quadratic"), "linear, cosine"),
        ((0.0, 1.0, None), "linear, cosine"),
        ((ForwardKL(), 1.0), "two divergences or two numbers"),
        ((0.0, "1"), "two divergences or two numbers"),
        ((0.0, math.nan), "two divergences or two numbers"),
        ((0.0, True), "two divergences or two numbers"),
        ((None, None), "two divergences or two numbers"),
        ((ForwardKL, TARGET), "two divergences or two numbers"),
    ],
)
def test_what_cannot_be_annealed(arguments: tuple, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        anneal(*arguments)


@pytest.mark.parametrize(
    "parts",
    [(), (ForwardKL(),), ((0.0, 1.0),), ((-1.0, 1.0),), ((math.inf, 1.0),), (("1", 1.0),), ((1.0,),), ((True, 1.0),)],
)
def test_what_are_no_stages(parts: tuple) -> None:
    with pytest.raises(ConfigError):
        stages(*parts)


numbers = st.integers(0, 5).map(float)
shares = st.floats(0.01, 10)
schedules = st.recursive(
    st.one_of(numbers, st.builds(anneal, numbers, numbers)),
    lambda inner: st.lists(st.tuples(shares, inner), min_size=1, max_size=4).map(lambda parts: stages(*parts)),
    max_leaves=8,
)


@steady
@given(schedules)
def test_every_value_of_a_run_is_among_those_looked_at_before_it(schedule) -> None:
    along = [at(schedule, step / 5000) for step in range(5001)]
    values = values_of(schedule)
    assert min(values) <= min(along) + 1e-9
    assert max(values) >= max(along) - 1e-9
    assert any(along) <= any(at(schedule, moment) for moment in moments_of(schedule))


@steady
@given(st.lists(shares, min_size=1, max_size=30))
def test_no_stage_is_too_short_to_be_seen(widths) -> None:
    schedule = stages(*((width, float(place)) for place, width in enumerate(widths)))
    assert {at(schedule, moment) for moment in moments_of(schedule)} == set(range(len(widths)))
    assert values_of(schedule) == list(range(len(widths)))


def test_a_schedule_of_somebody_else_is_sampled() -> None:
    class Bump(Schedule):
        def __call__(self, progress: float) -> float:
            return float(0.4 < progress < 0.45)

    assert {0.0, 1.0} <= set(values_of(Bump()))
    assert 0.42 in moments_of(Bump(), 3.0)
