"""The shapes a row can come in, recognised by columns and checked row by row.

prompt + completion     two strings, or two lists of messages      loss on the completion
messages                a conversation                             loss on every assistant turn
text                    one string                                 loss on everything
prompt                  a string, or a list of messages            nothing to learn from until a model has written to it

A row may also have a ``context``, a text that a privileged teacher reads first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from abkd.data.rows import Row
from abkd.errors import DataError

Message = dict[str, Any]


class BadRowError(Exception):
    """A row that cannot be trained on. ``reason`` is the same for all rows of a kind; ``detail`` is about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PlainPair:
    """Two strings, used as they are."""

    prompt: str
    completion: str

    def as_chat(self) -> Chat:
        """The same pair as one user turn and one assistant turn."""
        user = {"role": "user", "content": self.prompt}
        return Chat((user, {"role": "assistant", "content": self.completion}), first_trained=1)


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """One string that is to be completed."""

    prompt: str

    def as_chat(self) -> Chat:
        """The same as one user turn."""
        return Chat(({"role": "user", "content": self.prompt},), first_trained=1)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; assistant turns from index ``first_trained`` on are trained."""

    messages: tuple[Message, ...]
    first_trained: int = 0
    tools: list[Any] | None = None

    def trained_turns(self) -> list[int]:
        """Indices of the trained turns."""
        turns = range(self.first_trained, len(self.messages))
        return [i for i in turns if self.messages[i]["role"] == "assistant"]

    def with_context(self, context: str) -> Chat:
        """The same conversation whose system message is, or begins with, ``context``."""
        if not context:
            return self
        first = self.messages[0]
        if first["role"] != "system":
            system = {"role": "system", "content": context}
            return replace(self, messages=(system, *self.messages), first_trained=self.first_trained + 1)
        own = first.get("content", "")
        joined = f"{context}\n\n{own}" if isinstance(own, str) else [{"type": "text", "text": context}, *own]
        return replace(self, messages=({**first, "content": joined}, *self.messages[1:]))


@dataclass(frozen=True, slots=True)
class PlainText:
    """One string, all of it trained."""

    text: str


Record = PlainPair | PlainPrompt | Chat | PlainText
Parser = Callable[[Row], Record]


def recognise(columns: Iterable[str], completions: bool = True) -> Parser:
    """The parser for rows with these columns; where several formats fit, the first of the module's table is taken.

    ``completions`` says that the data's own are learnt from. If not, prompts are enough, and text is none.

    Raises DataError that says which columns came and which are wanted.
    """
    present = set(columns)
    for wanted, parser in _FORMATS if completions else _PROMPTED:
        if wanted <= present:
            return parser
    came = ", ".join(repr(name) for name in sorted(present)) or "none"
    if completions and "prompt" in present:
        raise DataError(
            f"the data has prompts and no completions (columns {came}): let a model write them, with "
            "source: StudentSamples() or source: TeacherSamples() (what abkd generate writes beforehand), "
            "or give a column 'completion'"
        )
    wanted = "'prompt' and 'completion', or 'messages', or 'text'" if completions else "'prompt', or 'messages'"
    plain = " (a text has no prompt to write to)" if not completions and "text" in present else ""
    raise DataError(f"expected columns {wanted}; the data has {came}{plain}: rename them")


def _parse_pair(row: Row) -> Record:
    prompt, completion = _present(row, "prompt"), _present(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        _check_not_blank(prompt, "prompt")
        _check_not_blank(completion, "completion")
        return PlainPair(prompt, completion)
    if isinstance(prompt, list) and isinstance(completion, list):
        before, after = _messages(prompt, "prompt"), _messages(completion, "completion")
        return _checked(Chat(before + after, first_trained=len(before), tools=row.get("tools") or None))
    raise BadRowError(
        "prompt and completion are not both strings or both lists of messages",
        f"prompt is {type(prompt).__name__} and completion is {type(completion).__name__}: "
        "both must be strings, or both lists of messages",
    )


def _parse_prompt(row: Row) -> Record:
    prompt = _present(row, "prompt")
    if isinstance(prompt, str):
        _check_not_blank(prompt, "prompt")
        return PlainPrompt(prompt)
    messages = _messages(prompt, "prompt")
    if messages[-1]["role"] == "assistant":
        raise BadRowError("prompt ends with the assistant", "the last turn of a prompt must not be the assistant's")
    return Chat(messages, first_trained=len(messages), tools=row.get("tools") or None)


def _parse_messages(row: Row) -> Record:
    return _checked(Chat(_messages(_present(row, "messages"), "messages"), tools=row.get("tools") or None))


def _parse_text(row: Row) -> Record:
    text = _present(row, "text")
    if not isinstance(text, str):
        raise BadRowError("text is not a string", f"text is {type(text).__name__}, expected a string")
    _check_not_blank(text, "text")
    return PlainText(text)


_FORMATS: tuple[tuple[frozenset[str], Parser], ...] = (
    (frozenset({"prompt", "completion"}), _parse_pair),
    (frozenset({"messages"}), _parse_messages),
    (frozenset({"text"}), _parse_text),
)
_PROMPTED = (*_FORMATS[:2], (frozenset({"prompt"}), _parse_prompt))


def context_of(row: Row, fixed: str | None) -> str:
    """What a privileged teacher reads first: the fixed text, else the row's own, "" where it has none."""
    own = row.get("context") or "" if fixed is None else fixed
    if not isinstance(own, str):
        raise BadRowError("context is not a string", f"context is {type(own).__name__}, expected a string")
    return own


def _present(row: Row, column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise BadRowError(f"{column} is null" if column in row else f"{column} is missing")
    return value


def _check_not_blank(value: str, column: str) -> None:
    if not value.strip():
        raise BadRowError(f"{column} is empty")


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    """Messages as plain dicts without null fields (tables fill those in where rows differ)."""
    if not isinstance(value, list):
        raise BadRowError(f"{column} is not a list", f"{column} is {type(value).__name__}, expected a list of messages")
    if not value:
        raise BadRowError(f"{column} is empty")
    return tuple(_message(message, column, number) for number, message in enumerate(value, 1))


def _message(message: Any, column: str, number: int) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRowError(f"{column} has a message without a role", f"{column}: message {number} has no 'role'")
    kept = {key: value for key, value in message.items() if value is not None}
    if "content" not in kept and "tool_calls" not in kept:
        raise BadRowError(f"{column} has a message without content", f"{column}: message {number} has no 'content'")
    return kept


def _checked(chat: Chat) -> Chat:
    turns = chat.trained_turns()
    if not turns:
        raise BadRowError("no assistant turn", "no assistant turn: nothing to train on")
    if turns[0] == 0:
        raise BadRowError("conversation starts with the assistant", "an assistant turn needs a turn before it")
    for turn in turns:
        message = chat.messages[turn]
        content = message.get("content", "")
        if not message.get("tool_calls") and not (content.strip() if isinstance(content, str) else content):
            raise BadRowError("assistant turn is empty", f"the assistant turn in message {turn + 1} is empty")
    return chat
