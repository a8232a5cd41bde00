"""The shapes a row can come in, recognised by columns and checked row by row.

prompt + completion     two strings, or two lists of messages      loss on the completion
messages                a conversation                             loss on every assistant turn
conversations           the same, also in ShareGPT's keys          loss on every assistant turn
instruction + output    Alpaca's, with ``input`` where there is    loss on the output
text                    one string                                 loss on everything
prompt, instruction     a string, or a list of messages            nothing to learn from until a model has written to it

A conversation may have ``tools`` (JSON schemas) and a ``system`` message beside it, an Alpaca row also a ``history`` of
earlier questions and answers. A row may also have ``chat_template_kwargs``, which its chat template is given, and a
``context``, a text that a privileged teacher reads first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from abkd.data.bad_rows import BadRowError
from abkd.data.beside import read_template_kwargs
from abkd.data.messages import Message, Turns, known_arguments, read_tools, read_turns
from abkd.data.rows import Row
from abkd.errors import DataError

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
"""Preamble of Alpaca's prompts, where no chat template is applied."""


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """One string that is to be completed.

    ``question``: what a user's turn holds, where it is not the prompt itself. ``before``: turns before that one, which
    only a conversation can hold. ``template_kwargs``: as in ``Chat``.
    """

    prompt: str
    question: str | None = None
    before: tuple[Message, ...] = ()
    template_kwargs: dict[str, Any] | None = None

    def as_chat(self) -> Chat:
        """The same as one user turn."""
        user = {"role": "user", "content": self.prompt if self.question is None else self.question}
        return Chat((*self.before, user), len(self.before) + 1, template_kwargs=self.template_kwargs)


@dataclass(frozen=True, slots=True)
class PlainPair:
    """Two strings, used as they are; the rest as in ``PlainPrompt``."""

    prompt: str
    completion: str
    question: str | None = None
    before: tuple[Message, ...] = ()
    template_kwargs: dict[str, Any] | None = None

    def as_chat(self) -> Chat:
        """The same pair as one user turn and one assistant turn."""
        asked = PlainPrompt(self.prompt, self.question, self.before, self.template_kwargs).as_chat()
        return replace(asked, messages=(*asked.messages, {"role": "assistant", "content": self.completion}))


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; assistant turns from index ``first_trained`` on are trained, except those in ``untrained``.

    ``template_kwargs``: variables of the chat template that the row sets.
    """

    messages: tuple[Message, ...]
    first_trained: int = 0
    tools: list[Any] | None = None
    untrained: frozenset[int] = frozenset()
    template_kwargs: dict[str, Any] | None = None

    def beside(self) -> dict[str, Any]:
        """What ``apply_chat_template`` is given beside the messages."""
        return {"tools": self.tools, **(self.template_kwargs or {})}

    def trained_turns(self) -> list[int]:
        """Indices of the trained turns."""
        turns = (i for i in range(self.first_trained, len(self.messages)) if i not in self.untrained)
        return [i for i in turns if self.messages[i]["role"] == "assistant"]

    def with_context(self, context: str) -> Chat:
        """The same conversation whose system message is, or begins with, ``context``."""
        if not context:
            return self
        first = self.messages[0]
        if first["role"] != "system":
            turns = Turns(self.messages, self.untrained).behind(({"role": "system", "content": context},))
            first_trained = self.first_trained + 1
            return replace(self, messages=turns.messages, first_trained=first_trained, untrained=turns.untrained)
        own = first.get("content", "")
        joined = f"{context}\n\n{own}".rstrip() if isinstance(own, str) else [{"type": "text", "text": context}, *own]
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
    if completions and present & {"prompt", "instruction"}:
        raise DataError(
            f"the data has prompts and no completions (columns {came}): let a model write them, with "
            "source: StudentSamples() or source: TeacherSamples() (what abkd generate writes beforehand), "
            "or give a column 'completion' (beside 'instruction': 'output')"
        )
    wanted = "'prompt' and 'completion', or 'messages', or 'text'" if completions else "'prompt', or 'messages'"
    plain = " (a text has no prompt to write to)" if not completions and "text" in present else ""
    raise DataError(
        f"expected columns {wanted}; the data has {came}{plain}: rename them (ShareGPT's 'conversations' and Alpaca's "
        "'instruction', 'input', 'output' are read too)"
    )


def has_completions(row: Row) -> bool:
    """Whether a row has the columns of a format with completions."""
    return any(wanted <= row.keys() for wanted, _ in _FORMATS)


def _parse_pair(row: Row) -> Record:
    prompt, completion = _present(row, "prompt"), _present(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        _check_not_blank(prompt, "prompt")
        _check_not_blank(completion, "completion")
        return PlainPair(prompt, completion, before=_system(row), template_kwargs=read_template_kwargs(row))
    if isinstance(prompt, list) and isinstance(completion, list):
        before, after = read_turns(prompt, "prompt"), read_turns(completion, "completion")
        turns = after.behind(before.messages)
        return _checked(_chat(turns, row, first_trained=len(before.messages)))
    raise BadRowError(
        "prompt and completion are not both strings or both lists of messages",
        f"prompt is {type(prompt).__name__} and completion is {type(completion).__name__}: "
        "both must be strings, or both lists of messages",
    )


def _parse_prompt(row: Row) -> Record:
    prompt = _present(row, "prompt")
    if isinstance(prompt, str):
        _check_not_blank(prompt, "prompt")
        return PlainPrompt(prompt, before=_system(row), template_kwargs=read_template_kwargs(row))
    turns = read_turns(prompt, "prompt")
    if turns.messages[-1]["role"] == "assistant":
        raise BadRowError("prompt ends with the assistant", "the last turn of a prompt must not be the assistant's")
    return _chat(turns, row, first_trained=len(turns.messages))


def _parse_conversation(row: Row, completions: bool = True) -> Record:
    column = next((name for name in CONVERSATIONS if name in row), CONVERSATIONS[0])
    turns = read_turns(_present(row, column), column)
    answered = any(message["role"] == "assistant" for message in turns.messages)
    if not completions and not answered:
        return _chat(turns, row, first_trained=len(turns.messages))
    return _checked(_chat(turns, row))


def _chat(turns: Turns, row: Row, first_trained: int = 0) -> Chat:
    """The conversation with the tools and the system message that stand beside it."""
    tools, before = read_tools(row.get("tools")), _system(row)
    if before and any(message["role"] == "system" for message in turns.messages):
        raise BadRowError(
            "two system messages", "there is a column 'system' and a system message in the conversation: keep one"
        )
    turns = turns.behind(before)
    messages = known_arguments(turns.messages, tools)
    return Chat(messages, first_trained + len(before), tools, turns.untrained, read_template_kwargs(row))


def _parse_asked_conversation(row: Row) -> Record:
    return _parse_conversation(row, completions=False)


def _parse_alpaca(row: Row, completions: bool = True) -> Record:
    instruction, given = _string(row, "instruction"), _string(row, "input", "")
    _check_not_blank(instruction, "instruction")
    request = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{given}\n\n" if given.strip() else "")
    prompt = f"{ALPACA_WITH_INPUT if given.strip() else ALPACA}{request}### Response:\n"
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    before = (*_system(row), *_history(row.get("history")))
    kwargs = read_template_kwargs(row)
    if not completions and not row.get("output"):
        return PlainPrompt(prompt, question, before, kwargs)
    output = _string(row, "output")
    _check_not_blank(output, "output")
    return PlainPair(prompt, output, question, before, kwargs)


def _parse_instruction(row: Row) -> Record:
    return _parse_alpaca(row, completions=False)


def _history(value: Any) -> Iterable[Message]:
    """Earlier questions and answers, which are read and not trained."""
    if value and not isinstance(value, list | tuple):
        raise BadRowError("history is not a list of pairs", "history: expected a list of [question, answer]")
    for pair in value or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise BadRowError("history is not a list of pairs", "history: expected a list of [question, answer]")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}


def _system(row: Row) -> tuple[Message, ...]:
    """The system message that a row has in a column of its own."""
    system = _string(row, "system", "")
    return ({"role": "system", "content": system},) if system.strip() else ()


def _parse_text(row: Row) -> Record:
    text = _present(row, "text")
    if not isinstance(text, str):
        raise BadRowError("text is not a string", f"text is {type(text).__name__}, expected a string")
    _check_not_blank(text, "text")
    return PlainText(text)


CONVERSATIONS = ("messages", "conversations", "conversation")
# functions with names, since the key of stored tokens holds the parser's
_FORMATS: tuple[tuple[frozenset[str], Parser], ...] = (
    (frozenset({"prompt", "completion"}), _parse_pair),
    *((frozenset({column}), _parse_conversation) for column in CONVERSATIONS),
    (frozenset({"instruction", "output"}), _parse_alpaca),
    (frozenset({"text"}), _parse_text),
)
_PROMPTED: tuple[tuple[frozenset[str], Parser], ...] = (
    _FORMATS[0],
    *((frozenset({column}), _parse_asked_conversation) for column in CONVERSATIONS),
    (frozenset({"prompt"}), _parse_prompt),
    (frozenset({"instruction"}), _parse_instruction),
)


def context_of(row: Row, fixed: str | None) -> str:
    """What a privileged teacher reads first: the fixed text, else the row's own, "" where it has none."""
    return _string(row, "context", "") if fixed is None else fixed


def _string(row: Row, column: str, otherwise: str | None = None) -> str:
    value = _present(row, column) if otherwise is None else row.get(column)
    if value is None and otherwise is not None:
        return otherwise
    if not isinstance(value, str):
        raise BadRowError(f"{column} is not a string", f"{column} is {type(value).__name__}, expected a string")
    return value


def _present(row: Row, column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise BadRowError(f"{column} is null" if column in row else f"{column} is missing")
    return value


def _check_not_blank(value: str, column: str) -> None:
    if not value.strip():
        raise BadRowError(f"{column} is empty")


def _checked(chat: Chat) -> Chat:
    turns = chat.trained_turns()
    if not turns and chat.untrained:
        raise BadRowError("no turn is trained", "every assistant turn is marked as not to be trained")
    if not turns:
        spoken = ", ".join(dict.fromkeys(message["role"] for message in chat.messages))
        raise BadRowError("no assistant turn", f"no assistant turn (roles: {spoken}): nothing to train on")
    if turns[0] == 0:
        raise BadRowError("conversation starts with the assistant", "an assistant turn needs a turn before it")
    for turn in turns:
        message = chat.messages[turn]
        if not message.get("tool_calls") and not message.get("content", "").strip():
            raise BadRowError("assistant turn is empty", f"the assistant turn in message {turn + 1} is empty")
    return chat
