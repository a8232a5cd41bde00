"""Generated tokens that are stored as text are read back as the same tokens."""

from __future__ import annotations

from typing import Any

import pytest

from abkd.data import prompt_of
from abkd.data.text import completion_ids, completion_text, prompt_text
from tiny_parts import make_chatml, make_llama, prepare_plain

PLAIN = [
    {"prompt": "Name the capital of France. ", "completion": "The capital is Paris."},
    {"prompt": "def add(a, b):\n   ", "completion": " return a + b"},
    {"prompt": "naïve 🙂", "completion": "\n\nübung "},
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in PLAIN
]


@pytest.mark.parametrize("rows", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("tokenizer", [make_chatml(), make_llama()], ids=["EOS pads", "BOS opens"])
def test_a_row_of_decoded_tokens_is_the_row_itself(tokenizer: Any, rows: Any) -> None:
    for row in prepare_plain(rows, tokenizer, max_length=128):
        prompt = prompt_of(row)
        completion = row["input_ids"][len(prompt) :]
        texts = {"prompt": prompt_text(prompt, tokenizer), "completion": completion_text(completion, tokenizer)}
        (again,) = prepare_plain([texts], tokenizer, max_length=128)
        assert again == row
        assert completion[-1] == tokenizer.eos_token_id
        assert completion_ids(texts["prompt"], texts["completion"], tokenizer) == completion[:-1]


def test_ends_are_left_out_once_and_only_at_the_end() -> None:
    tokenizer = make_llama()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert prompt_text([bos, *tokenizer("a")["input_ids"]], tokenizer) == "<s>a"
    assert prompt_text(tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer) == "a"
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert completion_text([eos, *letter, eos, eos], tokenizer) == "</s>a</s>"
    assert completion_text([*letter, *letter], tokenizer) == "aa"
    assert completion_text([], tokenizer) == ""
