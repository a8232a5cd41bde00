from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkd.data import (
    Collator,
    Example,
    TokenizedDataset,
    pack,
    padding_example,
    prompt_of,
    teacher_prompt_of,
    with_completion,
)
from abkd.errors import DataError
from abkd.origin import Origin
from tiny_parts import make_model, prepare_plain

ANY = st.lists(st.tuples(st.integers(2, 99), st.booleans()), min_size=1, max_size=12)
STUDENT = Origin.STUDENT.code
HINT = Example(
    input_ids=[5, 6, 7],
    trained=[False, False, True],
    teacher_input_ids=[1, 2, 5, 6, 7],
    teacher_trained=[False] * 4 + [True],
    pretrain_ids=[8, 9],
)


def test_the_prompt_ends_before_the_last_trained_run():
    def prompt(*trained):
        return prompt_of(Example(input_ids=list(range(len(trained))), trained=[bool(flag) for flag in trained]))

    assert prompt(0, 0, 1, 1) == [0, 1]
    assert prompt(0, 1, 0, 0, 1) == [0, 1, 2, 3], "an earlier turn is part of the prompt of a later one"
    assert prompt(0, 1, 1, 0) == [0], "what follows a cut-off conversation is not the prompt"
    assert prompt(0, 0, 0) == [0, 1, 2], "a prompt alone is all prompt"


@given(ANY, st.lists(st.integers(2, 99), max_size=6))
def test_a_completion_is_put_behind_the_prompt_and_is_all_that_is_trained(row, ids):
    example = Example(input_ids=[token for token, _ in row], trained=[False, *(flag for _, flag in row[1:])])
    made = with_completion(example, ids, STUDENT, privileged=True)
    prompt = prompt_of(example)
    assert made["input_ids"] == prompt + ids
    assert made["trained"] == [False] * len(prompt) + [True] * len(ids)
    assert made.get("origin") == STUDENT
    assert made.keys() == {"input_ids", "trained", "origin"}
    assert prompt_of(made) == (prompt if ids else made["input_ids"])


def test_the_teacher_keeps_its_prompt_where_it_is_privileged():
    assert teacher_prompt_of(HINT) == [1, 2, 5, 6]
    assert teacher_prompt_of(Example(input_ids=[5, 6], trained=[False, True])) == [5]
    made = with_completion(HINT, [3, 4], STUDENT, privileged=True)
    assert made == {
        "input_ids": [5, 6, 3, 4],
        "trained": [False, False, True, True],
        "teacher_input_ids": [1, 2, 5, 6, 3, 4],
        "teacher_trained": [False] * 4 + [True] * 2,
        "pretrain_ids": [8, 9],
        "origin": STUDENT,
    }
    plain = with_completion(HINT, [3, 4], STUDENT, privileged=False)
    assert plain == {name: value for name, value in made.items() if not name.startswith("teacher")}
    batch = Collator(pad_token_id=0)([made])["batch"]
    assert batch.targets.tolist() == [3, 4]
    assert batch.teacher.rows.tolist() == [3, 4]


def test_packed_rows_have_no_prompt():
    rows = TokenizedDataset([Example(input_ids=[1, 2], trained=[False, True])] * 2)
    with pytest.raises(DataError, match="several prompts, so it cannot be completed: set packing: false"):
        prompt_of(pack(rows, 4)[0])


def test_a_stand_in_reads_and_trains_nothing():
    made = padding_example(HINT)
    assert made == {
        "input_ids": [5],
        "trained": [False],
        "teacher_input_ids": [1],
        "teacher_trained": [False],
        "pretrain_ids": [8],
        "is_padding": True,
    }
    batch = Collator(pad_token_id=0)([made])["batch"]
    assert len(batch) == 0
    assert batch.origin.shape == batch.sequence.shape == (0,)
    assert batch.pretrain_targets is not None
    assert batch.pretrain_targets.numel() == 0


def test_the_official_off_by_one(chatml):
    """E4 of the notes: the labels of student text were not shifted and EOS was stripped with the padding, which is EOS.

    Reference: the chain rule. The rows' cross-entropies must sum to the model's -log p(completion | prompt).
    """
    prompt, completion = chatml("What? ")["input_ids"], [*chatml("Paris.")["input_ids"], chatml.eos_token_id]
    (row,) = prepare_plain([{"prompt": "What? "}], chatml, completions=False)
    batch = Collator(pad_token_id=chatml.pad_token_id)(
        [
            with_completion(row, completion, STUDENT, privileged=False),
            Example(input_ids=[3] * 40, trained=[False] * 40),  # pads the other
        ]
    )["batch"]
    first = int(batch.student.rows[0])
    assert first == len(prompt) - 1, "the first token of the completion is predicted at the last of the prompt"
    assert batch.targets.tolist() == completion
    assert batch.targets[-1] == chatml.eos_token_id == chatml.pad_token_id

    model = make_model("gpt2").double()
    with torch.no_grad():
        rows = model(**batch.student.inputs).logits.flatten(0, 1)[batch.student.rows].log_softmax(-1)
        found = rows.gather(1, batch.targets[:, None]).sum()
        alone = 0.0
        for count, token in enumerate(completion):
            read = torch.tensor([prompt + completion[:count]])
            alone += model(input_ids=read).logits[0, -1].log_softmax(-1)[token].item()
    assert found.item() == pytest.approx(alone, abs=1e-5)
