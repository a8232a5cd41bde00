"""An ensemble as one teacher."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from exact import assert_same
from op_parts import EVERY, FORMS, OPTIONS, SHAPES, Problem, gradients, problem

import abkd
from abkd.errors import ConfigError, VocabularyError
from abkd.ops import Averaged, ChunkPlan, Dense, Head, Projected, linear_divergence

AB = abkd.AlphaBeta(0.2, 0.7)
Of = Literal["probabilities", "logits"]
BOTH: tuple[Of, ...] = ("probabilities", "logits")


def ensemble(of: Of, **shape: Any) -> Problem:
    """Three members: two heads of different widths, and one that returns its logits."""
    one = problem(**shape)
    assert isinstance(one.teacher, Projected)
    second = Projected(torch.randn(13, 4), Head(torch.randn(37, 4), torch.randn(37), 0.6, 3.0))
    one.teacher = Averaged((one.teacher, second, Dense(2 * torch.randn(13, 37))), of)
    return one


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_every_divergence_is_that_of_the_naive_form(divergence: abkd.Divergence, of: Of, compiled: bool) -> None:
    one = ensemble(of, **SHAPES["everything"])
    for temperature in (1.0, 2.5):
        assert_same(one, divergence, plan=ChunkPlan(5, compiled), temperature=temperature)


@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("option", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option(option: dict[str, Any], of: Of) -> None:
    one = ensemble(of, bias=True)
    assert_same(one, AB, targets=one.targets, ce_weight=0.5, **option)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_the_averages_are(temperature: float) -> None:
    """The mean of the members' probabilities at the temperature; their normalised geometric mean."""
    z, y = 3 * torch.randn(2, 7, 20, dtype=torch.float64)
    p, q = (torch.softmax(each / temperature, -1) for each in (z, y))
    wanted = {"probabilities": (p + q) / 2, "logits": (p * q).sqrt() / (p * q).sqrt().sum(-1, keepdim=True)}
    student = Dense(torch.randn(7, 20, dtype=torch.float64))
    for of in BOTH:
        got = linear_divergence(student, Averaged((Dense(z), Dense(y)), of), AB, temperature=temperature)
        same = linear_divergence(student, Dense(temperature * wanted[of].log()), AB, temperature=temperature)
        torch.testing.assert_close(got.divergence, same.divergence, rtol=1e-12, atol=0)
        torch.testing.assert_close(got.teacher_entropy, same.teacher_entropy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_copies_of_one_member_are_that_member(of: Of, dtype: torch.dtype) -> None:
    one = problem(dtype=dtype)
    want, wanted = gradients(one, AB, temperature=1.5)
    assert isinstance(one.teacher, Projected)
    one.teacher = Averaged((one.teacher,) * 3, of)
    got, given = gradients(one, AB, temperature=1.5)
    room = {"rtol": 1e-11, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 1e-4}
    torch.testing.assert_close(got.divergence, want.divergence, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, **room)


def test_a_class_that_one_member_rules_out() -> None:
    values = torch.randn(4, 9)
    values[:, :3] = -torch.inf
    both = torch.randn(4, 9)
    both[:, 2] = -torch.inf
    one = problem(4, 9, dense_student=True)
    one.teacher = Averaged((Dense(values), Dense(both)))
    assert torch.isfinite(assert_same(one, AB).loss)
    assert one.solve(abkd.ReverseKL()).loss == torch.inf


def test_autocast_and_a_second_backward() -> None:
    one = ensemble("probabilities")
    with torch.autocast("cpu", torch.bfloat16):
        low, reference = one.solve(AB).loss, one.solve(AB, impl="reference").loss
    torch.testing.assert_close(low, reference)
    _, plain = gradients(one, AB)
    twice = one.fresh()
    loss = twice.solve(AB).loss
    loss.backward(retain_graph=True)
    loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(twice.leaves[name].grad, 2 * gradient)


def test_fewer_classes_of_every_member() -> None:
    one = ensemble("probabilities")
    assert isinstance(one.teacher, Averaged)
    cut = one.teacher.first(20)
    assert cut.classes == 20
    student = one.student.first(20)
    want = Averaged(tuple(Dense(part.logits(slice(None))[:, :20]) for part in one.teacher.parts))
    torch.testing.assert_close(linear_divergence(student, cut, AB).loss, linear_divergence(student, want, AB).loss)


def test_what_cannot_be_averaged_is_refused() -> None:
    rows = Dense(torch.randn(4, 10))
    with pytest.raises(ConfigError, match="needs at least one part"):
        Averaged(())
    with pytest.raises(ConfigError, match="of='mean'"):
        Averaged((rows,), "mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"the same number of rows, got \[4, 5\]"):
        Averaged((rows, Dense(torch.randn(5, 10))))
    with pytest.raises(VocabularyError, match=r"\[10, 12\] classes: cut"):
        Averaged((rows, Dense(torch.randn(4, 12))))
    wrong = Projected(torch.randn(4, 3), Head(torch.randn(10, 2)))
    with pytest.raises(ConfigError, match="the teacher's hidden states must be"):
        linear_divergence(rows, Averaged((rows, wrong)), AB)
