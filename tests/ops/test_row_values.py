"""What row functions are told, in the loss and outside of it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from op_parts import FORMS, WEIGHT, bucketed, confidence, problem, surprise
from torch import Tensor

import abkd
from abkd.errors import ConfigError
from abkd.ops import Averaged, ChunkPlan, Dense, Projected, RowFacts, TeacherRows, row_values

FUNCTIONS = {"confidence": confidence, "surprise": surprise}
DIVERGENCES = [abkd.ForwardKL(), abkd.Standardized(), abkd.DIST()]


def whole(one: Any, temperature: float) -> RowFacts:
    """The facts of all rows at once, of two models that are known completely."""
    log_p, log_q = (
        torch.log_softmax(side.logits(slice(None)).detach() / temperature, -1) for side in (one.teacher, one.student)
    )
    return RowFacts(log_p, log_q, one.targets, torch.arange(len(log_p)))


def coarse(one: Any, known: abkd.TopK, temperature: float) -> RowFacts:
    """The same over the classes of ``known`` and the tail."""
    facts = whole(one, temperature)
    tail = facts.log_q.scatter(-1, known.ids, -torch.inf).logsumexp(-1, keepdim=True)
    found = known.ids == one.targets[:, None]
    return RowFacts(
        torch.cat([known.log_p, known.log_tail[:, None]], -1),
        torch.cat([facts.log_q.gather(-1, known.ids), tail], -1),
        torch.where(found.any(-1), found.int().argmax(-1), known.ids.shape[-1]),
        facts.index,
    )


def collected(parts: list[RowFacts]) -> RowFacts:
    """The rows of several calls of a function in the order of their positions."""
    columns = [getattr(parts[0], each.name) for each in fields(RowFacts)]
    joined = [
        None if column is None else torch.cat([getattr(part, each.name) for part in parts])
        for column, each in zip(columns, fields(RowFacts), strict=True)
    ]
    order = torch.cat([part.index for part in parts]).argsort()
    return RowFacts(*(None if column is None else column[order] for column in joined))  # type: ignore[arg-type]


def assert_equal(got: RowFacts, wanted: RowFacts) -> None:
    for each in fields(RowFacts):
        mine, theirs = getattr(got, each.name), getattr(wanted, each.name)
        assert (mine is None) == (theirs is None), each.name
        if mine is not None:
            assert not mine.requires_grad
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_a_row_weight_is_told_rows_labels_and_positions(divergence: abkd.Divergence, impl: str) -> None:
    one = problem(bias=True)
    seen: list[RowFacts] = []

    def weight(facts: RowFacts) -> Tensor:
        seen.append(facts)
        return 1.0 + facts.index

    options: dict[str, Any] = {"targets": one.targets, "temperature": 2.0, "impl": impl, "plan": ChunkPlan(5, True)}
    result = one.solve(divergence, row_weight=(WEIGHT, weight), **options)
    torch.testing.assert_close(result.weight, WEIGHT * (1.0 + torch.arange(13)), check_dtype=False)
    facts, kept = whole(one, 2.0), WEIGHT.nonzero().squeeze(-1)
    of_kept = RowFacts(facts.log_p[kept], facts.log_q[kept], one.targets[kept], kept)
    assert_equal(collected(seen), of_kept)
    seen.clear()
    one.solve(divergence, row_weight=weight, **{**options, "targets": None})
    assert_equal(collected(seen), replace(facts, targets=None))


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_with_a_top_k_teacher_it_is_told_the_known_classes_and_the_tail(impl: str) -> None:
    one = problem(bias=True)
    assert isinstance(one.teacher, Projected)
    known, seen = bucketed(one.teacher, 5, 2.0), []
    one.targets[::2] = known.ids[::2, 3]

    def weight(facts: RowFacts) -> Tensor:
        seen.append(facts)
        return confidence(facts)

    options: dict[str, Any] = {"targets": one.targets, "temperature": 2.0, "impl": impl, "plan": ChunkPlan(5, False)}
    replace(one, teacher=known).solve(abkd.ForwardKL(), row_weight=weight, **options)
    assert_equal(collected(seen), coarse(one, known, 2.0))


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("shape", [{"bias": True}, {"dense_student": True}, {"dense_teacher": True}], ids=str)
def test_values_are_those_of_all_rows_at_once_in_any_chunks(shape: dict[str, Any], compiled: bool) -> None:
    one = problem(**shape)
    for temperature in (1.0, 2.5):
        facts = whole(one, temperature)
        for rows in (1, 5, 100):
            plan, sizes = ChunkPlan(rows, compiled), []

            def size(facts: RowFacts, sizes: list[int] = sizes) -> Tensor:
                sizes.append(len(facts.index))
                assert facts.targets is not None
                return facts.targets + 100 * facts.index

            got = row_values(
                one.student, one.teacher, {**FUNCTIONS, "size": size}, one.targets, temperature=temperature, plan=plan
            )
            assert set(got) == {*FUNCTIONS, "size"}
            assert max(sizes) <= rows
            assert torch.equal(got["size"], (one.targets + 100 * torch.arange(13)).float())
            for name, function in FUNCTIONS.items():
                torch.testing.assert_close(got[name], function(facts), rtol=1e-5, atol=1e-6)
                assert not got[name].requires_grad


@pytest.mark.parametrize("compiled", FORMS)
def test_values_with_a_top_k_teacher_and_logits_that_stay_as_they_are(compiled: bool) -> None:
    for dense in (False, True):
        one = problem(dense_student=dense)
        assert isinstance(one.teacher, Projected)
        before = one.student.tensors[0].detach().clone()
        known = bucketed(one.teacher, 5, 2.0)
        labels = {"label": lambda facts: facts.targets, **FUNCTIONS}
        got = row_values(one.student, known, labels, one.targets, temperature=2.0, plan=ChunkPlan(5, compiled))
        facts = coarse(one, known, 2.0)
        assert facts.targets is not None
        assert torch.equal(got["label"], facts.targets.float())
        for name, function in FUNCTIONS.items():
            torch.testing.assert_close(got[name], function(facts), rtol=1e-5, atol=1e-6)
        assert torch.equal(one.student.tensors[0], before)


def test_values_of_an_ensemble_are_weights_that_the_op_uses() -> None:
    one = problem()
    assert isinstance(one.teacher, Projected)
    one.teacher = Averaged((one.teacher, Dense(2 * torch.randn(13, 37))))
    got = row_values(one.student, one.teacher, FUNCTIONS, temperature=2.0, plan=ChunkPlan(5, False))
    for name, function in FUNCTIONS.items():
        used = one.solve(abkd.ForwardKL(), temperature=2.0, row_weight=function, plan=ChunkPlan(5, False)).weight
        assert torch.equal(got[name], used)


def test_values_of_no_rows_of_half_precision_and_of_no_functions() -> None:
    one = problem(0)
    assert row_values(one.student, one.teacher, FUNCTIONS)["surprise"].shape == (0,)
    half, wide = problem(dtype=torch.bfloat16), problem(dtype=torch.float64)
    assert row_values(half.student, half.teacher, FUNCTIONS)["surprise"].dtype == torch.float32
    assert row_values(wide.student, wide.teacher, FUNCTIONS)["surprise"].dtype == torch.float64
    assert row_values(wide.student, wide.teacher, {}) == {}
    with torch.autocast("cpu", torch.bfloat16):
        low = row_values(problem().student, problem().teacher, FUNCTIONS)["surprise"]
    high = row_values(problem().student, problem().teacher, FUNCTIONS)["surprise"]
    assert 0 < (low - high).abs().max() < 0.3


@pytest.mark.parametrize(
    ("teacher", "options", "says"),
    [
        (None, {"temperature": 0.0}, "temperature must be a finite number > 0"),
        (Dense(torch.randn(12, 37)), {}, "same number of rows"),
        (None, {"targets": torch.zeros(12, dtype=torch.int64)}, r"targets must be \[13\]"),
    ],
)
def test_what_cannot_be_asked(teacher: TeacherRows | None, options: dict[str, Any], says: str) -> None:
    one = problem()
    known = one.teacher if teacher is None else teacher
    assert known is not None
    with pytest.raises(ConfigError, match=says):
        row_values(one.student, known, FUNCTIONS, **options)
