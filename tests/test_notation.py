"""The notation of components: it is parsed exactly, and nothing is evaluated."""

from __future__ import annotations

import contextlib
from dataclasses import is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkd import divergences, notation, schedules, sources, teachers, terms
from abkd.data.images import augmentation
from abkd.divergences import AlphaBeta, Divergence, ForwardKL, JensenShannon, ReverseKL, WeightedSum
from abkd.errors import ConfigError
from abkd.notation import components, parse, render
from abkd.schedules import Schedule, anneal, stages
from abkd.teachers import EMA, AdapterOff, Ensemble, Live, Snapshot
from abkd.terms import TeacherConfidence, Term

EXPORTED = [getattr(divergences, name) for name in divergences.__all__]
FAMILY = [example for thing in EXPORTED if not thing.__abstractmethods__ for example in thing.examples()]
SCHEDULES = [
    anneal(ForwardKL(), AlphaBeta(0.2, 0.7), shape="cosine"),
    anneal(4.0, 1.0),
    stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7))),
    stages((1, anneal(ForwardKL(), ReverseKL())), (3, WeightedSum((0.1, ForwardKL()), (2.0, AlphaBeta(-0.5, 1e-3))))),
]
TEACHERS = [Live(), Ensemble("logits"), EMA(0.99), Snapshot(10), AdapterOff()]
TERMS = [
    Term(ForwardKL(), origin="teacher", weight=anneal(1.0, 0.0)),
    Term(SCHEDULES[0], ce_weight=0.5, kd_weight=anneal(0.0, 1.0), row_weight=TeacherConfidence()),
    Term(JensenShannon(), origin="student", sequence_mixture=True),
]


@pytest.mark.parametrize("value", [*FAMILY, *SCHEDULES, *TEACHERS, *TERMS], ids=repr)
def test_every_exported_component_reads_back_as_itself(value: object) -> None:
    assert parse(render(value)) == value
    assert render(parse(render(value))) == render(value)


def test_components_are_the_concrete_exports_and_nothing_beside() -> None:
    concrete = {thing.__name__ for thing in EXPORTED if issubclass(thing, Divergence) and not thing.__abstractmethods__}
    origins = {
        name
        for house, base in (
            (sources, sources.Source),
            (teachers, teachers.Teacher),
            (augmentation, augmentation.Augmentation),
        )
        for name in house.__all__
        if isinstance(thing := getattr(house, name), type) and issubclass(thing, base) and thing is not base
    }
    assert {"Mix", "EMA", "RandomCrop"} < origins
    kinds = (terms.LossTerm, terms.RowFunction, Schedule, Divergence)
    for house in (terms, schedules, sources):
        exported = (getattr(house, name) for name in getattr(house, "__all__", vars(house)))
        found = (thing for thing in exported if isinstance(thing, type) and issubclass(thing, kinds))
        origins |= {thing.__name__ for thing in found if is_dataclass(thing)}
    assert {"Adaptive", "TeacherConfidence", "Term", "anneal", "stages"} < origins
    assert set(components()) == concrete | origins


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_any_alpha_and_beta_survive_the_text(alpha: float, beta: float) -> None:
    assert parse(render(AlphaBeta(alpha, beta))) == AlphaBeta(alpha, beta)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("AlphaBeta(0.2, beta=.7)", AlphaBeta(0.2, 0.7)),
        ("  AlphaBeta( -1 , +1e-3 )\n", AlphaBeta(-1.0, 0.001)),
        ("WeightedSum([0.5, ForwardKL()], (0.5, ReverseKL()))", WeightedSum((0.5, ForwardKL()), (0.5, ReverseKL()))),
        ("1e-4", 1e-4),
        ("[True, None, 'x', (1, -2)]", [True, None, "x", (1, -2)]),
    ],
)
def test_what_may_be_written(text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("AlphaBta(0.2, 0.7)", "did you mean AlphaBeta?"),
        ("forward_kl()", "did you mean ForwardKL?"),
        ("kl()", "ForwardKL() or ReverseKL()"),
        ("Nonsense()", "Available: AdapterOff, Adaptive, AlphaBeta"),
        ("Divergence()", "there is no component 'Divergence'"),
        ("ForwardKL", "write ForwardKL() instead of ForwardKL"),
        ("AlphaBeta(alhpa=0.2)", "'alhpa'; did you mean alpha? Its signature is AlphaBeta(alpha=0.2, beta=0.7)"),
        ("AlphaBeta(1, 2, 3)", "too many positional arguments; its signature is AlphaBeta(alpha=0.2, beta=0.7)"),
        ("anneal(ForwardKL())", "missing a required argument: 'end'"),
        ("AlphaBeta(alpha=1, alpha=2)", "once"),
        ("AlphaBeta(**{})", "by its own name"),
        ("AlphaBeta(nan, 1)", "alpha must be a finite number, got nan"),
        ("AlphaBeta(1, -inf)", "beta must be a finite number, got -inf"),
        ("AlphaBeta(1e999, 1)", "alpha must be a finite number, got inf"),
        ("AlphaBeta('x', 1)", "alpha must be a finite number, got 'x'"),
        ("anneal(ForwardKL(), ReverseKL(), shape='cosin')", "linear, cosine"),
        ("abkd.AlphaBeta(1, 0)", "write AlphaBeta(...) without anything before the name"),
        ("AlphaBeta(0.2, 0.7", "cannot read"),
        ("", "cannot read ''"),
        ("1 + 1", "other expressions are not evaluated"),
        ("AlphaBeta(1, 0).alpha", "other expressions are not evaluated"),
        ("-'x'", "a sign is allowed only before a number"),
        ("((" * 5001, "at most"),
        ("TopKCache(k=" + "9" * 30 + ")", "an integer may have at most 19 digits"),
        ("AlphaBeta(" + "9" * 5000 + ", 1)", "cannot read"),
        ("AlphaBeta(1e400, 1)", "alpha must be a finite number, got inf"),
        ("2 ** 10 ** 10", "other expressions are not evaluated"),
        ("-" * 5000 + "1", "cannot read"),
        ("AlphaBeta(0.2", "in a YAML list or mapping put it in quotes"),
        ("(" * 4000, "cannot read"),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_refused_and_how(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "AlphaBeta.__init__.__globals__",
        "eval('1')",
        "f'{1}'",
        "parse('1')",
        "b'bytes'",
        "...",
        "1j",
    ],
)
def test_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text)


def test_nearest_says_nothing_far_fetched() -> None:
    assert notation.nearest("zzz", ["alpha"]) == "."
