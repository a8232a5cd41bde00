from __future__ import annotations

import pytest

from abkd.data import TokenizedDataset, load_rows, prepare_dataset, pretraining_chunks, split_held_out
from abkd.errors import ConfigError, DataError
from tiny_parts import SENTENCES, make_chatml

ROWS = [{"prompt": f"What is {i}? ", "completion": f"It is {i}. " * (i + 1)} for i in range(12)]
BAD = {3: ("completion", None), 5: ("completion", " "), 9: ("prompt", "What is it? " * 200)}


@pytest.fixture
def bad_rows():
    rows = [dict(row) for row in ROWS]
    for index, (column, value) in BAD.items():
        rows[index][column] = value
    return rows


def test_a_dataset_is_a_sequence_of_examples(chatml):
    dataset = prepare_dataset(ROWS, chatml, max_length=256)
    assert len(dataset) == 12
    assert dataset.lengths == [len(example["input_ids"]) for example in dataset]
    assert dataset.trained_tokens == sum(sum(example["trained"]) for example in dataset)
    first = dataset[0]
    assert {type(value) for value in first["input_ids"]} == {int}
    assert {type(value) for value in first["trained"]} == {bool}
    assert dataset[-1] == dataset[11]
    with pytest.raises(IndexError):
        dataset[12]
    assert dataset.dropped == {}


def test_prepared_data_is_left_alone(chatml):
    dataset = prepare_dataset(ROWS, chatml, max_length=256)
    assert prepare_dataset(dataset, chatml, max_length=8) is dataset


def test_fingerprint_is_of_what_is_trained_on(chatml, llama):
    def digest(tokenizer=chatml, rows=ROWS, **kwargs):
        return prepare_dataset(rows, tokenizer, **{"max_length": 256, **kwargs}).fingerprint

    assert digest() == digest()
    assert digest() == digest(rows=load_rows(ROWS))
    others = {digest(llama), digest(rows=ROWS[::-1]), digest(max_length=20), digest(apply_chat_template=True)}
    assert len({digest(), *others}) == 5


def test_truncated_rows_are_counted(chatml):
    dataset = prepare_dataset(ROWS, chatml, max_length=20)
    assert 0 < dataset.truncated < 12
    assert max(dataset.lengths) == 20


class TestBadRows:
    def test_error_names_rows_and_reasons(self, chatml, bad_rows):
        with pytest.raises(DataError) as caught:
            prepare_dataset(bad_rows, chatml, max_length=256)
        message = str(caught.value)
        assert "train: 3 of 12 rows cannot be used" in message
        assert "row 4: completion is null; row 6: completion is empty; row 10: prompt has" in message
        assert "max_length is 256: raise max_length or shorten the prompt" in message
        assert "on_bad_row: drop" in message

    def test_the_line_of_the_file_is_named_also_after_a_split(self, chatml, bad_rows, tmp_path):
        import json

        path = tmp_path / "mine.jsonl"
        path.write_text("\n\n" + "\n".join(map(json.dumps, bad_rows)))
        train, held = split_held_out(load_rows(path), 0.25)
        part, line = (train, 6) if 6 in train.numbers else (held, 6)
        with pytest.raises(DataError, match=rf"mine\.jsonl: .*line {line}: completion is null"):
            prepare_dataset(part, chatml, max_length=256)

    def test_drop_counts_by_reason(self, chatml, bad_rows):
        dataset = prepare_dataset(bad_rows, chatml, max_length=256, on_bad_row="drop")
        good = [row for index, row in enumerate(bad_rows) if index not in BAD]
        assert list(dataset) == list(prepare_dataset(good, chatml, max_length=256))
        assert dataset.dropped == {
            "completion is null": 1,
            "completion is empty": 1,
            "prompt longer than max_length": 1,
        }

    def test_nothing_left(self, chatml):
        with pytest.raises(DataError, match=r"all 2 rows were dropped \(2 × completion is null\)"):
            prepare_dataset([{"prompt": "a", "completion": None}] * 2, chatml, on_bad_row="drop")

    def test_long_lists_are_cut_short(self, chatml):
        with pytest.raises(DataError, match="row 10: completion is null; and 20 more"):
            prepare_dataset([{"prompt": "a", "completion": None}] * 30, chatml)

    def test_text_that_is_no_text(self, chatml):
        with pytest.raises(DataError, match=r"row 1: .*half of a surrogate pair"):
            prepare_dataset([{"prompt": "a\ud800", "completion": "b"}], chatml)


class TestChatTemplates:
    def test_plain_strings_become_turns_when_asked(self, chatml):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        plain = prepare_dataset([{"prompt": "hi", "completion": "hello"}], chatml, apply_chat_template=True)
        for row in ({"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}):
            assert prepare_dataset([row], chatml)[0] == plain[0]

    def test_no_template(self):
        tokenizer = make_chatml()
        tokenizer.chat_template = None
        with pytest.raises(DataError, match="no chat template"):
            prepare_dataset(ROWS, tokenizer, apply_chat_template=True)

    def test_text_cannot_be_a_turn(self, chatml):
        with pytest.raises(DataError, match="the data has text"):
            prepare_dataset([{"text": "hello"}], chatml, apply_chat_template=True)


def test_wrong_settings(chatml):
    with pytest.raises(ConfigError, match="'error' or 'drop', got 'skip'"):
        prepare_dataset(ROWS, chatml, on_bad_row="skip")
    with pytest.raises(ConfigError, match="max_length must be at least 2"):
        prepare_dataset(ROWS, chatml, max_length=1)
    with pytest.raises(DataError, match="the data has 'question'"):
        prepare_dataset([{"question": "a"}], chatml)
    with pytest.raises(DataError, match="no examples"):
        TokenizedDataset([])


class TestPretraining:
    def test_chunks_are_the_documents_in_a_row(self, chatml):
        chunks = pretraining_chunks(SENTENCES, chatml, 16)
        assert {len(chunk) for chunk in chunks} == {16}
        whole = "".join(f"{sentence}<|im_end|>" for sentence in SENTENCES)
        assert whole.startswith(chatml.decode([token for chunk in chunks for token in chunk]))

    def test_little_text_is_one_chunk(self, llama):
        (chunk,) = pretraining_chunks(["bye", " "], llama, 512)
        assert llama.decode(chunk) == "<s>bye</s>"
        with pytest.raises(DataError, match="pre-training text is empty"):
            pretraining_chunks([" "], llama, 512)

    def test_every_row_carries_a_chunk(self, chatml):
        dataset = prepare_dataset(ROWS, chatml, max_length=256)
        chunks = [[1, 2, 3], [4, 5]]
        both = dataset.with_pretraining(chunks)
        assert [both[i].get("pretrain_ids") for i in range(3)] == [chunks[0], chunks[1], chunks[0]]
        assert both[5]["input_ids"] == dataset[5]["input_ids"]
        with pytest.raises(DataError, match="at least one chunk"):
            dataset.with_pretraining([])
