from __future__ import annotations

import itertools

import pytest

from abkd.data import (
    Example,
    TokenizedDataset,
    load_rows,
    pack,
    prepare_dataset,
    pretraining_chunks,
    prompt_of,
    split_held_out,
    teacher_prompt_of,
)
from abkd.errors import ConfigError, DataError
from tiny_parts import CHATML, SENTENCES, make_chatml, prepare_plain

ROWS = [{"prompt": f"What is {i}? ", "completion": f"It is {i}. " * (i + 1)} for i in range(12)]
BAD = {3: ("completion", None), 5: ("completion", " "), 9: ("prompt", "What is it? " * 200)}


@pytest.fixture
def bad_rows():
    rows = [dict(row) for row in ROWS]
    for index, (column, value) in BAD.items():
        rows[index][column] = value
    return rows


def test_a_dataset_is_a_sequence_of_examples(chatml):
    dataset = prepare_plain(ROWS, chatml, max_length=256)
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


def test_not_every_example_needs_every_column():
    plain = Example(input_ids=[1, 2], trained=[False, True])
    hint = Example(**plain, teacher_input_ids=[3, 1, 2], teacher_trained=[False, False, True])
    full = Example(**plain, pretrain_ids=[4], origin=2, is_padding=True)
    for examples in ([plain, hint, full], [full, hint, plain], [hint, plain]):
        assert list(TokenizedDataset(examples)) == examples
    assert list(TokenizedDataset([full]).with_pretraining([[7, 8]])) == [{**full, "pretrain_ids": [7, 8]}]
    assert TokenizedDataset([plain, full]).fingerprint != TokenizedDataset([plain, plain]).fingerprint
    with pytest.raises(DataError, match="needs input_ids and trained, got one with input_ids"):
        TokenizedDataset([plain, {"input_ids": [1]}])


def test_prepared_data_is_left_alone(chatml):
    dataset = prepare_plain(ROWS, chatml, max_length=256)
    assert prepare_plain(dataset, chatml, max_length=8) is dataset


def test_fingerprint_is_of_what_is_trained_on(chatml, llama):
    def digest(tokenizer=chatml, rows=ROWS, **kwargs):
        return prepare_plain(rows, tokenizer, **{"max_length": 256, **kwargs}).fingerprint

    assert digest() == digest()
    assert digest() == digest(rows=load_rows(ROWS))
    others = {digest(llama), digest(rows=ROWS[::-1]), digest(max_length=20), digest(apply_chat_template=True)}
    assert len({digest(), *others}) == 5


def test_the_fingerprint_is_that_of_runs_and_caches_begun_before():
    """Lengths, then values, of each column in the order of their names."""
    rows = [Example(input_ids=[1, 2, 3], trained=[False, True, True]), Example(input_ids=[4, 5], trained=[False, True])]
    dataset = TokenizedDataset(rows)
    assert dataset.fingerprint == "dc265d1ae3273f44"
    assert pack(dataset, 5).fingerprint == "18ec939993b3396e"
    assert dataset.with_pretraining([[7, 8, 9]]).fingerprint == "fd9266fa8e88be01"


def test_truncated_rows_are_counted(chatml):
    dataset = prepare_plain(ROWS, chatml, max_length=20)
    assert 0 < dataset.truncated < 12
    assert max(dataset.lengths) == 20


class TestBadRows:
    def test_error_names_rows_and_reasons(self, chatml, bad_rows):
        with pytest.raises(DataError) as caught:
            prepare_plain(bad_rows, chatml, max_length=256)
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
            prepare_plain(part, chatml, max_length=256)

    def test_drop_counts_by_reason(self, chatml, bad_rows):
        dataset = prepare_plain(bad_rows, chatml, max_length=256, on_bad_row="drop")
        good = [row for index, row in enumerate(bad_rows) if index not in BAD]
        assert list(dataset) == list(prepare_plain(good, chatml, max_length=256))
        assert dataset.dropped == {
            "completion is null": 1,
            "completion is empty": 1,
            "prompt longer than max_length": 1,
        }

    def test_nothing_left(self, chatml):
        with pytest.raises(DataError, match=r"all 2 rows were dropped \(2 × completion is null\)"):
            prepare_plain([{"prompt": "a", "completion": None}] * 2, chatml, on_bad_row="drop")

    def test_long_lists_are_cut_short(self, chatml):
        with pytest.raises(DataError, match="row 10: completion is null; and 20 more"):
            prepare_plain([{"prompt": "a", "completion": None}] * 30, chatml)

    def test_text_that_is_no_text(self, chatml):
        with pytest.raises(DataError, match=r"row 1: .*lone surrogate"):
            prepare_plain([{"prompt": "a\ud800", "completion": "b"}], chatml)


class TestChatTemplates:
    def test_plain_strings_become_turns_when_asked(self, chatml):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        plain = prepare_plain([{"prompt": "hi", "completion": "hello"}], chatml, apply_chat_template=True)
        for row in ({"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}):
            assert prepare_plain([row], chatml)[0] == plain[0]

    def test_no_template(self):
        tokenizer = make_chatml()
        tokenizer.chat_template = None
        with pytest.raises(ConfigError, match="apply_chat_template is true but the tokenizer has no chat template"):
            prepare_dataset(ROWS, tokenizer, apply_chat_template=True)
        with pytest.raises(DataError, match="the data has conversations but the tokenizer has no chat template"):
            prepare_dataset([{"messages": [USER, ASSISTANT]}], tokenizer)

    def test_text_cannot_be_a_turn(self, chatml):
        with pytest.raises(DataError, match="needs columns prompt and completion, got text"):
            prepare_plain([{"text": "hello"}], chatml, apply_chat_template=True)


class TestConversationsOfTables:
    """Arrow gives every tool call and schema the keys of all rows."""

    ROWS = tuple(
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": tool, "arguments": {key: "Oslo"}}}],
                },
            ],
            "tools": [{"type": "function", "function": {"name": tool, "parameters": {key: {"type": "string"}}}}],
        }
        for tool, key in (("weather", "city"), ("stock", "ticker"))
    )

    def test_they_are_what_their_rows_were(self, tmp_path):
        import datasets

        tokenizer = make_chatml()
        tokenizer.chat_template = (
            "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.role }}"
            "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|im_end|>{% endfor %}"
        )
        table = datasets.Dataset.from_list(list(self.ROWS))
        assert "'ticker': None" in str(table[0])
        table.to_parquet(str(tmp_path / "rows.parquet"))
        plain = [row["input_ids"] for row in prepare_dataset(self.ROWS, tokenizer)]
        assert "null" not in tokenizer.decode(plain[0])
        for source in (table, str(tmp_path / "rows.parquet")):
            assert [row["input_ids"] for row in prepare_dataset(source, tokenizer)] == plain


class TestExamplesOfOneRow:
    """If a template rewrites earlier answers, a row becomes several examples."""

    TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 3

    @pytest.fixture
    def rewriting(self):
        tokenizer = make_chatml()
        tokenizer.chat_template = CHATML.replace(
            "m['content']", "(m['content'] + ('!' if loop.last and m['role'] == 'assistant' else ''))"
        )
        return tokenizer

    def test_they_are_counted_and_said_once(self, rewriting, caplog):
        caplog.set_level("INFO", "abkd")
        dataset = prepare_dataset([{"messages": self.TALK}] * 2, rewriting)
        assert (len(dataset), dataset.account.rows, dataset.account.rendered) == (6, 2, 2)
        (line,) = caplog.messages
        assert "train, 2 of 2 rows: the chat template renders earlier turns differently" in line

    def test_those_that_fit_are_kept(self, rewriting):
        whole = prepare_dataset([{"messages": self.TALK}], rewriting)
        dataset = prepare_dataset([{"messages": self.TALK}], rewriting, max_length=whole.lengths[1])
        assert list(dataset) == [whole[0], whole[1]]
        assert dataset.truncated == 1
        assert dataset.account.cut_tokens == sum(whole[2]["trained"])

    def test_each_has_a_side_for_the_teacher(self, rewriting):
        row = {"messages": self.TALK}
        for example in prepare_dataset([row], rewriting, privileged=True, context="Know this."):
            theirs = rewriting.decode(example["teacher_input_ids"])
            assert theirs.startswith("<|im_start|>system\nKnow this.")
            assert theirs.endswith(rewriting.decode(example["input_ids"]))


def test_a_broken_template_is_one_sentence():
    tokenizer = make_chatml()
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(ConfigError, match="chat template is broken"):
        prepare_dataset([{"messages": [USER, ASSISTANT]}] * 3, tokenizer)
    assert len(prepare_dataset([{"text": "hello"}], tokenizer)) == 1


def test_wrong_settings(chatml):
    with pytest.raises(ConfigError, match="'error' or 'drop', got 'skip'"):
        prepare_plain(ROWS, chatml, on_bad_row="skip")
    with pytest.raises(ConfigError, match="max_length must be at least 2"):
        prepare_plain(ROWS, chatml, max_length=1)
    with pytest.raises(DataError, match="got 'question'"):
        prepare_plain([{"question": "a"}], chatml)
    with pytest.raises(DataError, match="no examples"):
        TokenizedDataset([])


class TestPromptsAlone:
    def test_they_are_the_prompts_of_the_pairs(self, chatml, llama):
        for tokenizer in (chatml, llama):
            pairs = prepare_plain(ROWS, tokenizer, max_length=256, completions=False)
            assert list(pairs) == list(prepare_plain(ROWS, tokenizer, max_length=256))
            alone = prepare_plain(
                [{"prompt": row["prompt"]} for row in ROWS], tokenizer, max_length=256, completions=False
            )
            assert [row["input_ids"] for row in alone] == [prompt_of(row) for row in pairs] == [*map(prompt_of, alone)]
            assert alone.trained_tokens == 0

    def test_a_conversation_ends_with_the_generation_prompt(self, chatml):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        (row,) = prepare_plain([{"prompt": turns[:1]}], chatml, completions=False)
        pair = prepare_plain([{"prompt": turns[:1], "completion": turns[1:]}], chatml)[0]
        assert row["input_ids"] == prompt_of(pair)
        as_turn = prepare_plain([{"prompt": "hi"}], chatml, apply_chat_template=True, completions=False)
        assert as_turn[0] == row

    def test_room_for_one_token_is_left(self, chatml):
        count = len(chatml("What is 1? ")["input_ids"])
        rows = [{"prompt": "What is 1? "}, {"prompt": "What is it? " * 50}]
        kept = prepare_plain(rows, chatml, max_length=count + 1, completions=False, on_bad_row="drop")
        assert kept.lengths == [count]
        assert kept.dropped == {"prompt longer than max_length": 1}
        with pytest.raises(DataError, match=f"prompt has {count} tokens, max_length is {count}: raise max_length"):
            prepare_plain(rows[:1], chatml, max_length=count, completions=False)


USER, ASSISTANT = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "see you"}
SYSTEM = {"role": "system", "content": "be nice"}
SHAPES = {
    "pair": {"prompt": "What is 1? ", "completion": "It is 1."},
    "prompt": {"prompt": "What is 1? "},
    "text": {"text": "What is 1? It is 1."},
    "chat": {"messages": [USER, ASSISTANT]},
    "chat of several turns": {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]},
    "chat prompt": {"prompt": [SYSTEM, USER]},
    "chat pair": {"prompt": [USER], "completion": [ASSISTANT]},
}


class TestTeacherSide:
    def prepare(self, row, tokenizer, **options):
        completions = "completion" in row or "messages" in row or "text" in row
        return prepare_plain([row], tokenizer, completions=completions, **options)[0]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_without_a_context_both_sides_are_the_same(self, chatml, llama, shape):
        for tokenizer in (chatml, llama):
            row = SHAPES[shape]
            if tokenizer is llama and "chat" in shape and SYSTEM in row.get("messages", row.get("prompt")):
                continue  # its template has no system message
            plain = self.prepare(row, tokenizer)
            for given in ({"context": ""}, {}):
                both = self.prepare({**row, "context": None}, tokenizer, privileged=True, **given)
                assert (both["teacher_input_ids"], both["teacher_trained"]) == (both["input_ids"], both["trained"])
                assert (both["input_ids"], both["trained"]) == (plain["input_ids"], plain["trained"])

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_context_stands_before_the_same_targets(self, chatml, shape):
        row = {**SHAPES[shape], "context": "Know this. "}
        example = self.prepare(row, chatml, privileged=True)
        assert example == self.prepare(SHAPES[shape], chatml, privileged=True, context="Know this. ")
        theirs = itertools.compress(example["teacher_input_ids"], example["teacher_trained"])
        assert list(theirs) == list(itertools.compress(example["input_ids"], example["trained"]))
        assert prompt_of(example) == prompt_of(self.prepare(SHAPES[shape], chatml))
        text, own = chatml.decode(example["teacher_input_ids"]), chatml.decode(example["input_ids"])
        if "chat" not in shape:
            assert text == "Know this. " + own
        elif "be nice" in own:
            assert text == own.replace("be nice", "Know this. \n\nbe nice")
        else:
            assert text == "<|im_start|>system\nKnow this. <|im_end|>\n" + own

    def test_opening_tokens_stay_in_front(self, llama):
        example = self.prepare(SHAPES["pair"], llama, privileged=True, context="Know this. ")
        assert llama.decode(example["teacher_input_ids"]) == "<s>Know this. What is 1? It is 1.</s>"

    def test_the_prompt_is_encoded_as_it_will_be_read(self, chatml):
        """ "capital" is one token: context and prompt are encoded together, the completion as on the student's side."""
        row = {"prompt": "ital of ", "completion": "France"}
        example = self.prepare(row, chatml, privileged=True, context="the cap")
        theirs, mine = teacher_prompt_of(example), prompt_of(example)
        assert theirs == chatml("the capital of ")["input_ids"]
        assert example["teacher_input_ids"][len(theirs) :] == example["input_ids"][len(mine) :]

    def test_a_cut_completion_is_cut_for_both(self, chatml):
        row = {"prompt": "What? ", "completion": "Paris is nice again"}
        example = self.prepare(row, chatml, max_length=6, privileged=True, context="Know this. ")
        assert len(example["input_ids"]) == 6
        assert example["teacher_input_ids"] == chatml("Know this. ")["input_ids"] + example["input_ids"]

    def test_no_context_anywhere_is_refused(self, chatml):
        with pytest.raises(DataError, match="no column 'context', which a privileged teacher reads"):
            prepare_plain(ROWS, chatml, privileged=True)

    def test_templates_that_cannot_are_named(self, llama):
        with pytest.raises(DataError, match="only user and assistant"):
            self.prepare(SHAPES["chat"], llama, privileged=True, context="x")
        tokenizer = make_chatml()
        tokenizer.chat_template = CHATML.replace(
            "m['content']",
            "(m['content'] + ('!' if messages[0]['role'] == 'system' and m['role'] != 'system' else ''))",
        )
        with pytest.raises(DataError, match="differently when there is a system message"):
            self.prepare(SHAPES["chat"], tokenizer, privileged=True, context="x")


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
        dataset = prepare_plain(ROWS, chatml, max_length=256)
        chunks = [[1, 2, 3], [4, 5]]
        both = dataset.with_pretraining(chunks)
        assert [both[i].get("pretrain_ids") for i in range(3)] == [chunks[0], chunks[1], chunks[0]]
        assert both[5]["input_ids"] == dataset[5]["input_ids"]
        with pytest.raises(DataError, match="at least one chunk"):
            dataset.with_pretraining([])
