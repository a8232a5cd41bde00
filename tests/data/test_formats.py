from __future__ import annotations

import pytest

from abkd.data.formats import BadRowError, Chat, PlainPair, PlainPrompt, PlainText, context_of, recognise
from abkd.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


def parse(row, completions=True):
    return recognise(row, completions)(row)


def test_the_formats():
    assert parse({"prompt": "a", "completion": "b", "id": 3}) == PlainPair("a", "b")
    assert parse({"text": "a"}) == PlainText("a")
    assert parse({"messages": [USER, ASSISTANT]}) == Chat((USER, ASSISTANT))
    assert parse({"prompt": [USER], "completion": [ASSISTANT]}) == Chat((USER, ASSISTANT), first_trained=1)
    assert PlainPair("hi", "hello").as_chat() == Chat((USER, ASSISTANT), first_trained=1)


def test_only_completion_turns_of_a_pair_are_trained_and_all_of_messages():
    turns = [USER, ASSISTANT, USER]
    assert parse({"prompt": turns, "completion": [ASSISTANT]}).trained_turns() == [3]
    assert parse({"messages": [*turns, ASSISTANT]}).trained_turns() == [1, 3]


def test_nulls_that_a_table_fills_in_are_not_fields():
    row = {"messages": [{**USER, "tool_calls": None}, {**ASSISTANT, "name": None}], "tools": None}
    assert parse(row) == Chat((USER, ASSISTANT))


def test_tool_calls_need_no_content():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], "content": None}
    assert parse({"messages": [USER, call], "tools": [{"name": "f"}]}).tools == [{"name": "f"}]


def test_missing_columns_say_what_came():
    with pytest.raises(
        DataError, match="'prompt' and 'completion', or 'messages', or 'text'; the data has 'a', 'completion'"
    ):
        recognise(["completion", "a"])


class TestPrompts:
    def test_they_are_enough_where_a_model_writes(self):
        assert parse({"prompt": "a", "text": "b"}, completions=False) == PlainPrompt("a")
        assert parse({"prompt": [USER]}, completions=False) == Chat((USER,), first_trained=1)
        assert parse({"prompt": [USER]}, completions=False).trained_turns() == []
        assert PlainPrompt("hi").as_chat() == Chat((USER,), first_trained=1)

    @pytest.mark.parametrize("row", [{"prompt": "a", "completion": "b"}, {"messages": [USER, ASSISTANT]}])
    def test_other_rows_are_read_as_before(self, row):
        assert parse(row, completions=False) == parse(row)

    def test_where_none_writes_the_way_out_is_named(self):
        with pytest.raises(DataError, match=r"prompts and no completions .*source: StudentSamples\(\) or .*generate"):
            recognise(["prompt", "a"])

    def test_a_text_is_not_a_prompt(self):
        with pytest.raises(DataError, match=r"'prompt', or 'messages'; the data has 'text' \(a text has no prompt"):
            recognise(["text"], completions=False)

    @pytest.mark.parametrize(
        ("prompt", "reason"),
        [(" ", "prompt is empty"), ([], "prompt is empty"), (3, "not a list"), ([USER, ASSISTANT], "ends with the as")],
    )
    def test_bad_ones_have_a_reason(self, prompt, reason):
        with pytest.raises(BadRowError) as caught:
            parse({"prompt": prompt}, completions=False)
        assert reason in caught.value.reason


class TestContexts:
    def test_the_fixed_one_goes_before_the_column(self):
        row = {"context": "own"}
        assert [context_of(row, None), context_of(row, "fixed"), context_of(row, "")] == ["own", "fixed", ""]
        assert context_of({}, None) == context_of({"context": None}, None) == ""
        with pytest.raises(BadRowError, match="context is int, expected a string"):
            context_of({"context": 3}, None)

    def test_in_a_conversation_it_becomes_or_precedes_the_system_message(self):
        chat = Chat((USER, ASSISTANT))
        added = chat.with_context("know this")
        assert added.messages == ({"role": "system", "content": "know this"}, USER, ASSISTANT)
        assert added.trained_turns() == [2]
        both = added.with_context("first this")
        assert both.messages[0]["content"] == "first this\n\nknow this"
        assert both.messages[1:] == added.messages[1:]
        assert both.trained_turns() == [2]
        parts = Chat(({"role": "system", "content": [{"type": "text", "text": "x"}]}, USER), first_trained=2)
        assert [part["text"] for part in parts.with_context("y").messages[0]["content"]] == ["y", "x"]
        assert chat.with_context("") is chat
        assert Chat((USER, ASSISTANT, ASSISTANT), first_trained=2).with_context("x").trained_turns() == [3]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": None}, "completion is null"),
        ({"prompt": None, "completion": "b"}, "prompt is null"),
        ({"prompt": "a", "completion": " \n"}, "completion is empty"),
        ({"prompt": "", "completion": "b"}, "prompt is empty"),
        ({"prompt": "a", "completion": [ASSISTANT]}, "not both strings"),
        ({"prompt": "a", "completion": 3}, "not both strings"),
        ({"prompt": [USER], "completion": []}, "completion is empty"),
        ({"prompt": [USER], "completion": [USER]}, "no assistant turn"),
        ({"prompt": [USER], "completion": [{"content": "x"}]}, "without a role"),
        ({"prompt": [USER], "completion": ["x"]}, "without a role"),
        ({"prompt": [USER], "completion": [{"role": "assistant"}]}, "without content"),
        ({"messages": None}, "messages is null"),
        ({"messages": "hi"}, "messages is not a list"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [ASSISTANT]}, "starts with the assistant"),
        ({"messages": [USER, {**ASSISTANT, "content": " "}]}, "assistant turn is empty"),
        ({"text": None}, "text is null"),
        ({"text": "  "}, "text is empty"),
        ({"text": 3}, "text is not a string"),
    ],
)
def test_bad_rows_have_a_reason(row, reason):
    with pytest.raises(BadRowError) as caught:
        parse(row)
    assert reason in caught.value.reason


def test_a_column_absent_in_one_row():
    with pytest.raises(BadRowError, match="completion is missing"):
        recognise(["prompt", "completion"])({"prompt": "a"})
