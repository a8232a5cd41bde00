"""Normalise the messages of different datasets: a role, content as one string, tool calls as dicts.

Supported are OpenAI's ``role``/``content``, ShareGPT's ``from``/``value``, content as a list of text parts, arguments
of tool calls as a JSON string, and the keys that exclude a turn from training (``weight: 0``, ``train: false``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from abkd.data.bad_rows import BadRowError

Message = dict[str, Any]

Tool = dict[str, Any]
"""JSON schema of a tool."""

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "bot", "ai", "model"), "assistant"),
    "function_call": "assistant",
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
    **{name: name for name in ("system", "developer")},
}
"""Names of speakers in ShareGPT's, OpenAI's and other formats, in lower case."""

_SPOKEN = frozenset({"system", "user", "assistant"})  # roles that every template knows by these names
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields that may hold the reasoning before an answer."""

_TRAIN_KEYS = ("weight", "train", "training", "train_on_turn", "loss")
_NULL_IN_A_SCHEMA = frozenset({"default", "const"})  # where null is a value of JSON Schema


class Turns(NamedTuple):
    """Messages, and the indices of those that are excluded from training."""

    messages: tuple[Message, ...]
    untrained: frozenset[int]

    def after(self, before: tuple[Message, ...]) -> Turns:
        """The same turns, preceded by ``before``."""
        return Turns((*before, *self.messages), frozenset(index + len(before) for index in self.untrained))


def read_turns(value: object, column: str) -> Turns:
    """The messages of a row.

    Raises BadRowError with the number of the message that is invalid.
    """
    if not isinstance(value, list):
        raise BadRowError(f"{column} is not a list", f"{column} must be a list of messages, got {type(value).__name__}")
    if not value:
        raise BadRowError(f"{column} is empty")
    read = [_message(message, f"{column}: message {number}", column) for number, message in enumerate(value, 1)]
    return Turns(
        tuple(message for message, _ in read), frozenset(i for i, (_, trained) in enumerate(read) if not trained)
    )


def role_of(message: object) -> str | None:
    """The role of an unchecked message; None if it has none."""
    if not isinstance(message, Mapping):
        return None
    role, speaker = message.get("role"), message.get("from")
    if isinstance(role, str):
        return _openai_role(role)
    return ROLES.get(speaker.lower()) if isinstance(speaker, str) else None


def read_tools(value: object) -> list[Tool] | None:
    """Schemas of tools, possibly from a JSON string; None if there are none."""
    if isinstance(value, str) and value.strip():
        value = _from_json(value, "tools")
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise BadRowError("tools is not a list of objects", f"tools must be a list of JSON schemas, got {_kind(value)}")
    if not all(isinstance(tool.get("function", tool), Mapping) for tool in value):
        raise BadRowError(
            "a tool's function is not an object", "tools: expected {type: function, function: {name: ...}}"
        )
    return [_schema(tool) for tool in value]


def row_of_table(row: Mapping[str, object]) -> dict[str, object]:
    """A row of an Arrow table, without the nulls that the table adds for keys of other rows."""
    return {column: without_nulls(value) for column, value in row.items()}


def without_nulls(value: object) -> Any:
    """The value without null keys, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, bytes):  # strings from Hive and Spark, whose columns are declared as binary
        with suppress(UnicodeDecodeError):
            return value.decode()
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def reasoning_of(message: Message) -> str:
    """The reasoning that belongs to an answer, "" if it has none."""
    for field in REASONING:
        if isinstance(message.get(field), str) and message[field].strip():
            return message[field].strip()
    content = message.get("content", "")
    inside, closed, _ = content.rpartition("</think>") if isinstance(content, str) else ("", "", "")
    return inside.rpartition("<think>")[2].strip() if closed else ""


def known_arguments(messages: tuple[Message, ...], tools: list[Tool] | None) -> tuple[Message, ...]:
    """The same messages without null arguments that the called tool does not have.

    Tables add such nulls, and JSONL files made from tables keep them. A null for an argument that the tool does have is
    intended.
    """
    parameters = dict(_parameters(tools or []))
    if not parameters:
        return messages
    return tuple(
        {**each, "tool_calls": [_known(call, parameters) for call in each["tool_calls"]]}
        if "tool_calls" in each
        else each
        for each in messages
    )


def _parameters(tools: list[Tool]) -> Iterator[tuple[str, set[str]]]:
    """The name of each tool, and the names of its parameters."""
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if isinstance(properties, Mapping) and isinstance(function.get("name"), str):
            yield function["name"], set(properties)


def _known(call: Message, parameters: Mapping[str, set[str]]) -> Message:
    function = call.get("function", call)
    arguments = function.get("arguments")
    takes = parameters.get(str(function.get("name")))
    if takes is None or not isinstance(arguments, dict):
        return call
    kept = {key: value for key, value in arguments.items() if value is not None or key in takes}
    function = {**function, "arguments": kept}
    return {**call, "function": function} if "function" in call else function


def _message(message: object, where: str, column: str) -> tuple[Message, bool]:
    """One message in normalised form, and whether it may be trained on."""
    if not isinstance(message, Mapping):
        raise BadRowError(f"{column} has a message without a role", f"{where} has no 'role'")
    given = {key: value for key, value in message.items() if value is not None}
    made = _of_sharegpt(given, where) if "from" in given and "role" not in given else given
    if not isinstance(made.get("role"), str):
        raise BadRowError(f"{column} has a message without a role", f"{where} has no 'role'")
    if isinstance(made.get("function_call"), Mapping) and "tool_calls" not in made:  # OpenAI's older key
        made = {
            **{key: value for key, value in made.items() if key != "function_call"},
            "tool_calls": [made["function_call"]],
        }
    if "content" not in made and "tool_calls" not in made:
        raise BadRowError(f"{column} has a message without content", f"{where} has no 'content'")
    marks = [_trains(made[key], key, where) for key in _TRAIN_KEYS if key in made]
    kept = {key: value for key, value in made.items() if key not in _TRAIN_KEYS}
    kept["role"] = _openai_role(kept["role"])
    if "content" in kept:
        kept["content"] = _text(kept["content"], where)
    if "tool_calls" in kept:
        kept["tool_calls"] = _calls(kept["tool_calls"], where)
    if not kept.get("tool_calls", True):
        del kept["tool_calls"]
        kept.setdefault("content", "")
    return kept, all(marks)


def _openai_role(role: str) -> str:
    """The role for a name such as "Assistant" or "model"; other names are kept, since the template may know them."""
    known = ROLES.get(role.lower())
    return known if known in _SPOKEN and role.lower() != "function_call" else role


def _of_sharegpt(given: Message, where: str) -> Message:
    speaker = given["from"]
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise BadRowError("unknown speaker", f"{where}: 'from' must be one of {known}, got {speaker!r}")
    if "value" not in given:
        raise BadRowError("message without value", f"{where} has 'from' but no 'value'")
    rest = {key: value for key, value in given.items() if key not in ("from", "value")}
    if str(speaker).lower() != "function_call":
        return {"role": role, "content": given["value"], **rest}
    calls = _from_json(given["value"], f"{where} (function_call)")
    return {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls], **rest}


def _trains(value: object, key: str, where: str) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise BadRowError(
        f"{key} of a message is not 0 or 1",
        f"{where}: {key} must be 1 (trained) or 0 (context only), with no value in between, got {value!r}",
    )


def _text(content: object, where: str) -> str:
    """Content as one string; text parts are concatenated."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRowError("content is not text", f"{where}: content must be a string, got {_kind(content)}")
    return "".join(_part(part, where) for part in content)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else _kind(part)
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise BadRowError(
            f"content has a part that is not text ({kind})",
            f"{where}: content parts must be text, {{type: text, text: ...}}, got a part of type {kind!r}",
        )
    return text


def _calls(value: object, where: str) -> list[Message]:
    calls = _from_json(value, f"{where} (tool_calls)") if isinstance(value, str) else value
    if not isinstance(calls, list):
        raise BadRowError("tool_calls is not a list", f"{where}: tool_calls must be a list, got {_kind(calls)}")
    return [_call(call, where) for call in calls]


def _call(call: object, where: str) -> Message:
    given = call if isinstance(call, Mapping) else {}
    function = given.get("function", given)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRowError("tool call without a name", f"{where} has a tool call without a function name")
    read = {key: value for key, value in function.items() if value is not None}
    if isinstance(read.get("arguments"), str):
        read["arguments"] = _arguments(read["arguments"])
    if "function" not in given:
        return {"type": "function", "function": read}
    return {**{key: value for key, value in given.items() if value is not None}, "function": read}


def _arguments(text: str) -> Any:
    """The object in a JSON string, as templates expect it; any other string is returned unchanged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _schema(value: object, key: str = "") -> Any:
    """A JSON schema without null keys, except where null is a valid value."""
    if isinstance(value, Mapping):
        kept = {name: each for name, each in value.items() if each is not None or name in _NULL_IN_A_SCHEMA}
        return {name: each if name in _NULL_IN_A_SCHEMA else _schema(each, name) for name, each in kept.items()}
    return [_schema(each, key) for each in value] if isinstance(value, list) and key != "enum" else value


def _from_json(text: object, what: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError("a string that is not valid JSON", f"{what} is not valid JSON ({error})") from error


def _kind(value: object) -> str:
    return type(value).__name__
