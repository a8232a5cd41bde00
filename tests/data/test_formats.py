from __future__ import annotations

import pytest

from abkd.data.formats import BadRowError, Chat, PlainPair, PlainText, recognise
from abkd.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


def parse(row):
    return recognise(row)(row)


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
        DataError, match="'prompt' and 'completion', or 'messages', or 'text'; the data has 'a', 'prompt'"
    ):
        recognise(["prompt", "a"])


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
