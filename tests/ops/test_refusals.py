"""Invalid arguments raise a message with what was expected, what was got, and the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from op_parts import bucketed, problem

import abkd
from abkd.errors import ConfigError, VocabularyError
from abkd.ops import Averaged, Dense, Head, Projected, divergence_loss, linear_divergence, plan_chunks, row_metrics

AB = abkd.AlphaBeta(0.2, 0.7)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"temperature": -1.0}, "temperature must be a finite number > 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number > 0"),
        ({"temperature": float("inf")}, "temperature must be a finite number > 0"),
        ({"ce_weight": 0.5}, "needs targets"),
        ({"row_weight": torch.ones(12)}, r"row_weight must be \[13\]"),
        ({"row_weight": torch.ones(13, 1)}, r"row_weight must be \[13\]"),
        ({"targets": torch.zeros(12, dtype=torch.int64)}, r"targets must be \[13\]"),
    ],
    ids=str,
)
def test_options(impl: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        problem(13).solve(AB, impl=impl, **options)


def test_an_unknown_implementation() -> None:
    with pytest.raises(ConfigError, match="'auto', 'chunked' or 'reference'"):
        problem().solve(AB, impl="triton")


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf")])
def test_a_memory_budget_that_is_none(budget: float) -> None:
    with pytest.raises(ConfigError, match="memory_budget_mb must be a finite number > 0"):
        problem().solve(AB, memory_budget_mb=budget)


def test_two_vocabularies() -> None:
    student, teacher = Dense(torch.randn(4, 10)), Dense(torch.randn(4, 12))
    with pytest.raises(VocabularyError, match=r"student has 10 classes, teacher has 12.*first"):
        linear_divergence(student, teacher, AB)
    assert linear_divergence(student, teacher.first(10), AB).loss > 0
    with pytest.raises(VocabularyError):
        row_metrics(student, teacher, {}, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(VocabularyError):
        divergence_loss(student.values, teacher.values, AB)


def test_two_numbers_of_rows() -> None:
    with pytest.raises(ConfigError, match="same number of rows, got 4 and 5"):
        linear_divergence(Dense(torch.randn(4, 10)), Dense(torch.randn(5, 10)), AB)


def test_rows_that_only_a_teacher_can_give() -> None:
    values = Dense(torch.randn(4, 10))
    for rows in (Averaged((values,)), bucketed(values, 3)):
        with pytest.raises(ConfigError, match=f"Projected or Dense, got {type(rows).__name__}"):
            linear_divergence(rows, values, AB)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": torch.zeros(4, 3)},
        {"ids": torch.zeros(4, dtype=torch.int64)},
        {"log_p": torch.zeros(4, 2)},
        {"log_tail": torch.zeros(4, 1)},
        {"log_target": torch.zeros(5)},
        {"ids": torch.zeros(4, 0, dtype=torch.int64), "log_p": torch.zeros(4, 0)},
        {"classes": 2},
    ],
    ids=str,
)
def test_a_top_k_of_other_shapes(wrong: dict[str, Any]) -> None:
    values = Dense(torch.randn(4, wrong.get("classes", 10)))
    teacher = replace(bucketed(Dense(torch.randn(4, 10)), 3), **{"classes": 10, **wrong})
    with pytest.raises(ConfigError, match=r"TopK needs ids \[N, k\] .* got \[4"):
        linear_divergence(values, teacher, AB)


def test_a_head_of_another_width() -> None:
    head, teacher = Head(torch.randn(10, 7)), Dense(torch.randn(4, 10))
    for hidden in (torch.randn(4, 6), torch.randn(4, 1, 7)):
        with pytest.raises(ConfigError, match="the student's hidden states must be"):
            linear_divergence(Projected(hidden, head), teacher, AB)


def test_a_budget_gives_whole_multiples_of_32_rows_or_few() -> None:
    device = torch.device("cpu")
    assert plan_chunks(10**6, 151_936, device).rows_per_chunk == 192
    assert plan_chunks(10**6, 151_936, device, memory_budget_mb=1e-3).rows_per_chunk == 1
    assert plan_chunks(10, 10, device).compiled is False
