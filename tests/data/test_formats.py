from __future__ import annotations

import pytest

from abkd.data.formats import (
    BadRowError,
    Chat,
    PlainPair,
    PlainPrompt,
    PlainText,
    context_of,
    has_completions,
    recognise,
)
from abkd.data.messages import role_of, row_of_table
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


class TestShareGPT:
    TALK = ({"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"})

    @pytest.mark.parametrize("column", ["conversations", "conversation", "messages"])
    def test_its_keys_are_read(self, column):
        assert parse({column: list(self.TALK)}) == Chat((USER, ASSISTANT))
        assert parse({column: [USER, ASSISTANT]}) == Chat((USER, ASSISTANT))

    def test_its_speakers(self):
        speakers = ["system", "human", "function_call", "observation", "GPT"]
        values = ["be nice", "hi", '{"name": "f", "arguments": {"x": 1}}', "3", "hello"]
        talk = [{"from": who, "value": value} for who, value in zip(speakers, values, strict=True)]
        messages = parse({"conversations": talk}).messages
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
        assert messages[2]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]

    def test_a_system_message_and_tools_beside_it(self):
        row = {"conversations": list(self.TALK), "system": "be nice", "tools": '[{"name": "f"}]'}
        chat = parse(row)
        assert chat.messages[0] == {"role": "system", "content": "be nice"}
        assert chat.trained_turns() == [2]
        assert chat.tools == [{"name": "f"}]
        with pytest.raises(BadRowError, match="a column 'system' and a system message in the conversation"):
            parse({**row, "conversations": [{"from": "system", "value": "x"}, *self.TALK]})

    def test_an_unknown_speaker_is_named(self):
        with pytest.raises(BadRowError, match=r"conversations: message 1: 'from' must be one of human, .* got 'alien'"):
            parse({"conversations": [{"from": "alien", "value": "x"}, self.TALK[1]]})


@pytest.mark.parametrize(
    ("row", "answered"),
    [
        ({"prompt": "a", "completion": "b"}, True),
        ({"conversations": []}, True),
        ({"instruction": "a", "input": "", "output": "b"}, True),
        ({"text": "a"}, True),
        ({"prompt": "a"}, False),
        ({"instruction": "a", "input": ""}, False),
    ],
    ids=str,
)
def test_which_rows_can_be_evaluated(row, answered):
    assert has_completions(row) == answered


class TestAlpaca:
    def test_a_question_with_its_input(self):
        pair = parse({"instruction": "Add.", "input": "1 2", "output": "3"})
        assert pair.as_chat().messages == (
            {"role": "user", "content": "Add.\n\n1 2"},
            {"role": "assistant", "content": "3"},
        )
        assert pair.prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
        assert pair.completion == "3"

    @pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}])
    def test_and_without(self, given):
        pair = parse({"instruction": "Add.", "output": "3", **given})
        assert pair.as_chat().messages[0]["content"] == "Add."
        assert "Input" not in pair.prompt

    def test_system_and_history_come_before_and_are_not_trained(self):
        pair = parse({"instruction": "hi", "output": "hello", "system": "be nice", "history": [["a", "b"]]})
        chat = pair.as_chat()
        assert [message["content"] for message in chat.messages] == ["be nice", "a", "b", "hi", "hello"]
        assert chat.trained_turns() == [4]
        for history in (["a"], 5, "a"):
            with pytest.raises(BadRowError, match="history must be a list of"):
                parse({"instruction": "hi", "output": "hello", "history": history})

    def test_prompts_are_enough_where_a_model_writes(self):
        assert parse({"instruction": "hi"}, completions=False).as_chat() == Chat((USER,), first_trained=1)
        with pytest.raises(BadRowError, match="output is missing"):
            recognise(["instruction", "output"])({"instruction": "hi"})


class TestMessages:
    def test_roles_by_other_names_are_read_as_those_that_they_mean(self):
        for asks, answers in [("User", "Assistant"), ("Human", "model"), ("human", "AI"), ("USER", "bot")]:
            turns = [{"role": asks, "content": "hi"}, {"role": answers, "content": "hello"}]
            assert parse({"messages": turns}) == Chat((USER, ASSISTANT))
            assert [role_of(turn) for turn in turns] == ["user", "assistant"]
        for role in ("tool", "ipython", "Developer", "observation", "function_call", "critic"):
            assert parse({"messages": [{**USER, "role": role}, ASSISTANT]}).messages[0]["role"] == role

    def test_arguments_that_are_no_object_stay_a_text(self):
        for text in ("[" * 100_000, "none", "5"):
            call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
            assert parse({"messages": [USER, call]}).messages[1]["tool_calls"][0]["function"]["arguments"] == text

    def test_parts_of_text_are_put_together(self):
        parts = [{"type": "text", "text": "h"}, "i"]
        assert parse({"messages": [{**USER, "content": parts}, ASSISTANT]}).messages[0] == USER

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            ([{"type": "image", "image": "a.png"}], "message 1: content parts must be text, .* 'image'"),
            ([{"type": "text"}], "a part of type 'text'"),
            (4, "message 1: content must be a string, got int"),
            ({"text": "hi"}, "message 1: content must be a string, got dict"),
        ],
    )
    def test_content_that_is_no_text_is_named(self, content, why):
        with pytest.raises(BadRowError, match=why):
            parse({"messages": [{**USER, "content": content}, ASSISTANT]})

    @pytest.mark.parametrize(
        "mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": 0}, {"loss": False}]
    )
    def test_turns_that_are_context_only(self, mark):
        chat = parse({"messages": [USER, {**ASSISTANT, **mark}, USER, {**ASSISTANT, "weight": 1}]})
        assert chat == Chat((USER, ASSISTANT, USER, ASSISTANT), untrained=frozenset({1}))
        assert chat.trained_turns() == [3]
        assert chat.with_context("x").trained_turns() == [4]

    def test_weights_between_are_refused(self):
        with pytest.raises(BadRowError, match=r"message 2: weight must be 1 .* or 0 .*, got 0\.5"):
            parse({"messages": [USER, {**ASSISTANT, "weight": 0.5}]})

    def test_a_null_that_was_written_stays_and_one_of_another_tool_does_not(self):
        call = {"function": {"name": "f", "arguments": {"x": None, "of_another": None}}}
        schema = {"properties": {"x": {"enum": [1, None], "default": None}, "of_another": None}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": None}}]
        chat = parse({"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": tools})
        assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": None}
        known = {"properties": {"x": {"enum": [1, None], "default": None}}}
        assert chat.tools == [{"type": "function", "function": {"name": "f", "parameters": known}}]


def test_a_table_has_filled_in_nulls_at_any_depth():
    inner = {"a": None, "b": [{"c": None, "d": 1}, None]}
    assert row_of_table({"prompt": None, "messages": inner}) == {"prompt": None, "messages": {"b": [{"d": 1}, None]}}


@pytest.mark.parametrize("columns", [["messages"], ["conversations"], ["instruction", "output"], ["text"]])
def test_a_parser_has_a_name_for_the_key_of_stored_tokens(columns):
    named = [recognise([*columns, "prompt"], completions).__qualname__ for completions in (True, False)]
    assert all(name.startswith("_parse_") for name in named)


def test_missing_columns_say_what_came():
    with pytest.raises(DataError, match="'prompt' and 'completion', or 'messages', or 'text', got 'a', 'completion'"):
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
        with pytest.raises(DataError, match=r"prompts but no completions .*source: StudentSamples\(\) or .*generate"):
            recognise(["prompt", "a"])

    def test_a_text_is_not_a_prompt(self):
        with pytest.raises(DataError, match=r"'prompt', or 'messages', got 'text' \(text has no prompt"):
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
        with pytest.raises(BadRowError, match="context must be a string, got int"):
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
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "no turn is trained"),
        ({"messages": [USER, ASSISTANT], "tools": "{"}, "not valid JSON"),
        ({"messages": [USER, ASSISTANT], "tools": ["f"]}, "tools is not a list of objects"),
        ({"messages": [USER, ASSISTANT], "tools": [{"type": "function", "function": "f"}]}, "a tool's function is not"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "tool call without a name"),
        ({"conversations": [{"from": "human"}, ASSISTANT]}, "message without value"),
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
