"""The teacher's share, compared with a loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from enumerated import Pair, row_by_row, space, table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abkd import ChunkPlan, Divergence, JensenShannon, SkewForwardKL, SkewReverseKL
from abkd.errors import ConfigError
from abkd.terms import teacher_share

INF = math.inf
LOG_PROB = st.floats(-2, 0) | st.floats(-60, 0) | st.just(-INF) | st.just(0.0)
TEXTS = st.lists(st.lists(st.tuples(LOG_PROB, LOG_PROB), min_size=1, max_size=9), max_size=5)
quickly = settings(deadline=None, derandomize=True, max_examples=150, database=None)


def packed(texts: Sequence[Sequence[tuple[float, float]]]) -> tuple[Tensor, Tensor, Tensor]:
    rows = [(p, q) for text in texts for p, q in text]
    numbers = torch.tensor([n for n, text in enumerate(texts) for _ in text], dtype=torch.long)
    teacher, student = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).unbind(-1)
    return teacher, student, numbers


def by_hand(texts: Sequence[Sequence[tuple[float, float]]], prior: float, least: float) -> list[float]:
    shares = []
    for text in texts:
        teacher, student = math.log(prior), math.log(1 - prior)
        for p, q in text:
            top = max(teacher, student)
            if top == -INF:
                share = prior
            else:
                one, other = math.exp(teacher - top), math.exp(student - top)
                share = one / (one + other)
            shares.append(min(max(share, least), 1 - least))
            teacher, student = teacher + p, student + q
    return shares


@quickly
@given(TEXTS, st.sampled_from([0.5, 0.1, 0.999]))
def test_it_is_what_a_loop_says_and_never_0_or_1_or_nan(texts: list[list[tuple[float, float]]], prior: float) -> None:
    share = teacher_share(*packed(texts), prior)
    assert share.dtype == torch.float64
    assert share.tolist() == pytest.approx(by_hand(texts, prior, torch.finfo(torch.float64).eps), abs=1e-9)
    assert ((share > 0) & (share < 1)).all()


@quickly
@given(TEXTS)
def test_the_student_has_the_rest(texts: list[list[tuple[float, float]]]) -> None:
    teacher, student, numbers = packed(texts)
    there, back = teacher_share(teacher, student, numbers, 0.25), teacher_share(student, teacher, numbers, 0.75)
    assert (there + back).tolist() == pytest.approx([1.0] * len(there), abs=1e-12)


@quickly
@given(TEXTS)
def test_what_stands_beside_a_sequence_changes_nothing(texts: list[list[tuple[float, float]]]) -> None:
    """Equal up to the last bit, which vectors and their remainders round differently. In float32, as in a trainer."""
    together, *alone = (
        teacher_share(teacher.float(), student.float(), numbers)
        for teacher, student, numbers in map(packed, (texts, *([text] for text in texts)))
    )
    torch.testing.assert_close(together, torch.cat([*alone, torch.zeros(0)]), rtol=4e-7, atol=0)


def test_long_sequences_and_what_single_precision_costs() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = -0.5 * torch.rand(2, 3, 500, generator=generator)
    student[1] = teacher[1].flip(0)  # back at even odds at its end
    texts = [list(zip(*each, strict=True)) for each in zip(teacher.tolist(), student.tolist(), strict=True)]
    wanted = torch.tensor(by_hand(texts, 0.5, 0.0), dtype=torch.float64)
    one, two, numbers = packed(texts)
    assert (teacher_share(one, two, numbers) - wanted).abs().max() < 1e-12
    assert (teacher_share(one.float(), two.float(), numbers) - wanted).abs().max() < 1e-5
    assert wanted[999] == pytest.approx(0.5, abs=0.2)
    assert (wanted - 0.5).abs().max() > 0.49


def test_tokens_that_one_of_them_would_never_write_settle_it() -> None:
    for never in (-INF, -3e38, -1e30):
        texts = [[(never, -1.0), (-1.0, -1.0)], [(-1.0, never), (-5.0, -1.0), (0.0, 0.0)], [(never, never), (0.0, 0.0)]]
        teacher, student, numbers = packed(texts)
        share = teacher_share(teacher.float(), student.float(), numbers, 0.25)
        least = torch.finfo(torch.float32).eps
        assert share.tolist() == pytest.approx([0.25, least, 0.25, 1 - least, 1 - least, 0.25, 0.25], rel=1e-6)


def test_it_is_a_constant_of_at_least_single_precision() -> None:
    teacher, student = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0], requires_grad=True)
    share = teacher_share(teacher, student, torch.zeros(2, dtype=torch.long))
    assert not share.requires_grad
    assert share.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))])
    assert teacher_share(teacher.bfloat16(), student.bfloat16(), torch.zeros(2)).dtype == torch.float32
    assert teacher_share(teacher[:0], student[:0], torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.5, math.nan])
def test_a_prior_that_leaves_nothing_to_find_out_is_refused(prior: float) -> None:
    with pytest.raises(ConfigError, match="prior"):
        teacher_share(torch.zeros(2), torch.zeros(2), torch.zeros(2), prior)


@pytest.mark.parametrize("shapes", [((2,), (2,), (3,)), ((2,), (3,), (2,)), ((2, 2), (2, 2), (2, 2))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    one, two, three = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ConfigError, match=r"\[N\]"):
        teacher_share(one, two, three)


@pytest.mark.parametrize("divergence", [JensenShannon(), SkewForwardKL(0.5), SkewReverseKL(0.5)], ids=repr)
@pytest.mark.parametrize(
    "how", [{"impl": "reference"}, {"plan": ChunkPlan(7, False)}, {"plan": ChunkPlan(7, True)}], ids=str
)
def test_the_op_gives_each_row_the_divergence_of_its_own_share(divergence: Divergence, how: dict[str, Any]) -> None:
    where = space(3, 3)
    pair = Pair(where, table(where, 3), table(where, 4).requires_grad_())
    row, weight, share = where.row, pair.teacher.exp()[where.sequence], pair.share(0.3)
    wanted = (weight * row_by_row(divergence, pair.log_p[row], pair.log_q[row], share)).sum()
    found = pair.step_wise(divergence, pair.teacher, teacher_share=share, **how)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    found, wanted = (torch.autograd.grad(each, pair.z_q)[0] for each in (found, wanted))
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)
