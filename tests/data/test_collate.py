from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkd.data import Batch, Collator, Example, padding_example
from abkd.errors import ConfigError, DataError
from tiny_parts import FAMILIES, make_model

A = Example(input_ids=[5, 6, 7, 8], trained=[False, False, True, True])
B = Example(input_ids=[9, 10, 11], trained=[False, True, False])
COLLATE = Collator(pad_token_id=0)


def collate(*examples: Example, **kwargs) -> Batch:
    return Collator(pad_token_id=0, **kwargs)(examples)["batch"]


@torch.no_grad()
def logits_of_rows(model, batch: Batch) -> torch.Tensor:
    return model(**batch.student.inputs_for(model), use_cache=False).logits.flatten(0, 1)[batch.student.rows]


def test_shift_and_right_padding_by_hand():
    batch = collate(A, B)
    inputs = batch.student.inputs
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 11, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert batch.student.rows.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [7, 8, 10]
    assert batch.weight.tolist() == [1.0, 1.0, 1.0]
    assert (batch.weight.dtype, batch.targets.dtype) == (torch.float32, torch.int64)
    assert len(batch) == 3
    assert batch.teacher is batch.student


def test_left_padding_by_hand():
    batch = collate(A, B, padding_side="left")
    assert batch.student.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [0, 9, 10, 11]]
    assert batch.student.inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert batch.student.rows.tolist() == [1, 2, 5]
    assert batch.targets.tolist() == [7, 8, 10]


def test_a_pad_token_that_is_trained_counts():
    """EOS is often the pad token: the mask is by position, not by token."""
    batch = Collator(pad_token_id=8)([A, B])["batch"]
    assert batch.targets.tolist() == [7, 8, 10]


def test_packed_by_hand():
    joined = Example(input_ids=[5, 6, 7, 9, 10], trained=[False, True, True, False, True], segments=[0, 0, 0, 1, 1])
    batch = collate(joined, B, pad_to_multiple_of=6)
    inputs = batch.student.inputs
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 0, 0]]
    assert batch.student.rows.tolist() == [0, 1, 3, 6]
    assert batch.targets.tolist() == [6, 7, 10, 10]
    mask = inputs["attention_mask"]
    assert (mask.dtype, mask.shape) == (torch.bool, (2, 1, 6, 6))
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_first_token_of_a_segment_is_never_a_target():
    joined = Example(input_ids=[5, 6, 7], trained=[True, True, True], segments=[0, 1, 1])
    assert collate(joined).targets.tolist() == [7]


def test_nothing_trained_is_a_batch_of_no_rows():
    batch = collate(Example(input_ids=[1, 2], trained=[False, False]))
    assert len(batch) == 0
    assert batch.student.rows.shape == batch.weight.shape == (0,)


def test_pretraining_text_rides_along():
    batch = collate(Example(**A, pretrain_ids=[1, 2, 3]), Example(**B, pretrain_ids=[4, 5]))
    assert batch.pretrain is not None
    assert batch.pretrain_targets is not None
    assert batch.pretrain_targets.tolist() == [2, 3, 5]
    assert batch.pretrain.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert collate(A).pretrain is None


def test_a_teacher_with_its_own_prompt_selects_the_same_rows():
    hint = {"teacher_input_ids": [1, 2, 3, 5, 6, 7, 8], "teacher_trained": [False] * 5 + [True, True]}
    batch = collate(Example(**A, **hint))
    assert batch.teacher is not batch.student
    assert batch.teacher.rows.tolist() == [4, 5]
    ids = batch.teacher.inputs["input_ids"].flatten()
    assert ids[batch.teacher.rows + 1].tolist() == batch.targets.tolist() == [7, 8]
    hint["teacher_trained"] = [False] * 6 + [True]
    with pytest.raises(DataError, match="the same number of trained tokens, got 1 and 2"):
        collate(Example(**A, **hint))


def test_one_teacher_side_in_the_batch_is_enough():
    """The other rows are read as by the student, at any position of this row in the batch."""
    hint = Example(**A, teacher_input_ids=[1, *A["input_ids"]], teacher_trained=[False, *A["trained"]])
    for examples in ([B, hint], [hint, B]):
        batch = collate(*examples)
        ids = batch.teacher.inputs["input_ids"]
        assert sorted(ids[:, 0].tolist()) == [1, 9]
        assert torch.equal(ids.flatten()[batch.teacher.rows + 1], batch.targets)


def test_one_pretraining_text_in_the_batch_is_enough():
    batch = collate(A, Example(**B, pretrain_ids=[4, 5]))
    assert batch.pretrain is not None
    assert batch.pretrain_targets is not None
    assert batch.pretrain.inputs["input_ids"].tolist() == [[4, 5]]
    assert batch.pretrain_targets.tolist() == [5]


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_knows_its_origin_and_its_sequence(side):
    joined = Example(input_ids=[5, 6, 7, 9, 10], trained=[False, True, True, False, True], segments=[0, 0, 0, 1, 1])
    unsaid, written = B, Example(**A, origin=2)
    batch = collate(written, joined, padding_example(A), unsaid, padding_side=side)
    assert batch.targets.tolist() == [7, 8, 6, 7, 10, 10]
    assert batch.origin.tolist() == [2, 2, 0, 0, 0, 0]
    assert batch.sequence.tolist() == [0, 0, 1, 1, 2, 4]
    assert batch.origin.dtype == batch.sequence.dtype == torch.int64


def test_moving_keeps_what_is_shared():
    batch = collate(Example(**A, pretrain_ids=[1, 2, 3])).to("meta", non_blocking=True)
    assert batch.teacher is batch.student
    assert batch.pretrain is not None
    assert {
        tensor.device.type
        for tensor in (
            *(batch.targets, batch.weight, batch.origin, batch.sequence),
            *(batch.student.rows, batch.pretrain.rows),
        )
    } == {"meta"}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=12), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
    st.sampled_from([None, 1, 8]),
)
def test_rows_are_the_trained_tokens_in_order(rows, side, multiple):
    """For any masks and padding: the same targets, each after the position that predicts it."""
    examples = [Example(input_ids=[i for i, _ in row], trained=[f for _, f in row]) for row in rows]
    batch = collate(*examples, padding_side=side, pad_to_multiple_of=multiple)
    assert batch.targets.tolist() == [i for row in rows for i, flag in row[1:] if flag]
    inputs = batch.student.inputs
    assert torch.equal(inputs["input_ids"].flatten()[batch.student.rows + 1], batch.targets)
    assert inputs["input_ids"].shape[1] % (multiple or 1) == 0
    mask = inputs["attention_mask"]
    assert torch.equal(inputs["position_ids"] * mask, (mask.cumsum(1) - 1).clamp(min=0) * mask)
    assert mask.sum(1).tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_row(family, attention):
    """Other libraries deviate by 4 % on GPT-2 with one token of left padding."""
    model = make_model(family, attention)
    example = Example(input_ids=torch.randint(1, 340, (11,)).tolist(), trained=[False] * 4 + [True] * 7)
    alone = logits_of_rows(model, collate(example)).log_softmax(-1)
    for side, extra in itertools.product(("left", "right"), (1, 4, 16)):
        longer = Example(input_ids=[3] * (11 + extra), trained=[False] * (11 + extra))
        padded = logits_of_rows(model, collate(example, longer, padding_side=side)).log_softmax(-1)
        torch.testing.assert_close(padded, alone, rtol=1e-6, atol=1e-6)


def test_other_attention_kernels_are_refused_for_packed_rows(monkeypatch):
    model = make_model("llama")
    view = collate(Example(**A, segments=[0, 0, 1, 1])).student
    assert view.inputs_for(model) is view.inputs
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ConfigError, match="sdpa or eager, got 'flash_attention_2'"):
        view.inputs_for(model)
