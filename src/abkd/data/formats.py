"""Formats of rows, detected from the columns and checked row by row.

prompt + completion     two strings, or two lists of messages      loss on the completion
messages                a conversation                             loss on every assistant turn
conversations           the same, also in ShareGPT's keys          loss on every assistant turn
instruction + output    Alpaca's, optionally with ``input``        loss on the output
text                    one string                                 loss on everything
prompt, instruction     a string, or a list of messages            none until a model has completed it

A conversation may have the columns ``tools`` (JSON schemas) and ``system`` (a message), an Alpaca row also a
``history`` of earlier questions and answers. Any row may have ``chat_template_kwargs``, variables of its chat
template, and a ``context``, a text that a privileged teacher reads first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from abkd.data.bad_rows import BadRowError
from abkd.data.extra_columns import read_template_kwargs
from abkd.data.messages import Message, Tool, Turns, known_arguments, read_tools, read_turns
from abkd.data.rows import Row
from abkd.errors import DataError

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
"""Preamble of Alpaca prompts when no chat template is applied."""


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """One string to complete.

    ``question``: content of the user turn, if it is not the prompt itself. ``before``: turns before that one, which
    only a conversation can hold. ``template_kwargs``: as in ``Chat``.
    """

    prompt: str
    question: str | None = None
    before: tuple[Message, ...] = ()
    template_kwargs: dict[str, object] | None = None

    def as_chat(self) -> Chat:
        """The prompt as one user turn."""
        user = {"role": "user", "content": self.prompt if self.question is None else self.question}
        return Chat((*self.before, user), len(self.before) + 1, template_kwargs=self.template_kwargs)


@dataclass(frozen=True, slots=True)
class PlainPair:
    """Two strings, used as they are; the other fields as in ``PlainPrompt``."""

    prompt: str
    completion: str
    question: str | None = None
    before: tuple[Message, ...] = ()
    template_kwargs: dict[str, object] | None = None

    def as_chat(self) -> Chat:
        """The same pair as one user turn and one assistant turn."""
        turns = PlainPrompt(self.prompt, self.question, self.before, self.template_kwargs).as_chat()
        return replace(turns, messages=(*turns.messages, {"role": "assistant", "content": self.completion}))


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; assistant turns from index ``first_trained`` on are trained, except those in ``untrained``.

    ``template_kwargs``: variables of the chat template that the row sets.
    """

    messages: tuple[Message, ...]
    first_trained: int = 0
    tools: list[Tool] | None = None
    untrained: frozenset[int] = frozenset()
    template_kwargs: dict[str, object] | None = None

    def template_arguments(self) -> dict[str, object]:
        """Keyword arguments of ``apply_chat_template``: the tools and the row's template variables."""
        return {"tools": self.tools, **(self.template_kwargs or {})}

    def trained_turns(self) -> list[int]:
        """Indices of the trained turns."""
        turns = (i for i in range(self.first_trained, len(self.messages)) if i not in self.untrained)
        return [i for i in turns if self.messages[i]["role"] == "assistant"]

    def with_context(self, context: str) -> Chat:
        """The same conversation, with ``context`` as its system message or prepended to it."""
        if not context:
            return self
        first = self.messages[0]
        if first["role"] != "system":
            turns = Turns(self.messages, self.untrained).after(({"role": "system", "content": context},))
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
    """The parser for rows with these columns; if several formats match, the first in the module's table wins.

    ``completions``: whether the data's own completions are trained on. If not, prompts are enough, but text is not.

    Raises DataError with the columns that were found and those that are expected.
    """
    present = set(columns)
    for wanted, parser in _FORMATS if completions else _PROMPTED:
        if wanted <= present:
            return parser
    found = ", ".join(repr(name) for name in sorted(present)) or "none"
    if completions and present & {"prompt", "instruction"}:
        raise DataError(
            f"the data has prompts but no completions (columns {found}): let a model generate them, with "
            "source: StudentSamples() or source: TeacherSamples() (which abkd generate writes beforehand), "
            "or add a column 'completion' (for 'instruction': 'output')"
        )
    wanted = "'prompt' and 'completion', or 'messages', or 'text'" if completions else "'prompt', or 'messages'"
    plain = " (text has no prompt to complete)" if not completions and "text" in present else ""
    raise DataError(
        f"expected columns {wanted}, got {found}{plain}: rename them (ShareGPT's 'conversations' and Alpaca's "
        "'instruction', 'input', 'output' are also supported)"
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
        given, answers = read_turns(prompt, "prompt"), read_turns(completion, "completion")
        turns = answers.after(given.messages)
        return _checked(_chat(turns, row, first_trained=len(given.messages)))
    raise BadRowError(
        "prompt and completion are not both strings or both lists of messages",
        "prompt and completion must both be strings, or both lists of messages, "
        f"got {type(prompt).__name__} and {type(completion).__name__}",
    )


def _parse_prompt(row: Row) -> Record:
    prompt = _present(row, "prompt")
    if isinstance(prompt, str):
        _check_not_blank(prompt, "prompt")
        return PlainPrompt(prompt, before=_system(row), template_kwargs=read_template_kwargs(row))
    turns = read_turns(prompt, "prompt")
    if turns.messages[-1]["role"] == "assistant":
        raise BadRowError("prompt ends with the assistant", "the last turn of a prompt must not be an assistant turn")
    return _chat(turns, row, first_trained=len(turns.messages))


def _parse_conversation(row: Row, completions: bool = True) -> Record:
    column = next((name for name in CONVERSATIONS if name in row), CONVERSATIONS[0])
    turns = read_turns(_present(row, column), column)
    answered = any(message["role"] == "assistant" for message in turns.messages)
    if not completions and not answered:
        return _chat(turns, row, first_trained=len(turns.messages))
    return _checked(_chat(turns, row))


def _chat(turns: Turns, row: Row, first_trained: int = 0) -> Chat:
    """The conversation with the tools and the system message from their columns."""
    tools, before = read_tools(row.get("tools")), _system(row)
    if before and any(message["role"] == "system" for message in turns.messages):
        raise BadRowError(
            "two system messages", "it has a column 'system' and a system message in the conversation: keep one"
        )
    turns = turns.after(before)
    messages = known_arguments(turns.messages, tools)
    return Chat(messages, first_trained + len(before), tools, turns.untrained, read_template_kwargs(row))


def _parse_conversation_prompt(row: Row) -> Record:
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


def _history(value: object) -> Iterable[Message]:
    """Earlier questions and answers, which are not trained on."""
    pairs = value or ()
    if not isinstance(pairs, list | tuple):
        raise BadRowError("history is not a list of pairs", "history must be a list of [question, answer]")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise BadRowError("history is not a list of pairs", "history must be a list of [question, answer]")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}


def _system(row: Row) -> tuple[Message, ...]:
    """The system message from the column ``system``."""
    system = _string(row, "system", "")
    return ({"role": "system", "content": system},) if system.strip() else ()


def _parse_text(row: Row) -> Record:
    text = _present(row, "text")
    if not isinstance(text, str):
        raise BadRowError("text is not a string", f"text must be a string, got {type(text).__name__}")
    _check_not_blank(text, "text")
    return PlainText(text)


CONVERSATIONS = ("messages", "conversations", "conversation")
# named functions, because the cache key of the tokens contains the parser's name
_FORMATS: tuple[tuple[frozenset[str], Parser], ...] = (
    (frozenset({"prompt", "completion"}), _parse_pair),
    *((frozenset({column}), _parse_conversation) for column in CONVERSATIONS),
    (frozenset({"instruction", "output"}), _parse_alpaca),
    (frozenset({"text"}), _parse_text),
)
_PROMPTED: tuple[tuple[frozenset[str], Parser], ...] = (
    _FORMATS[0],
    *((frozenset({column}), _parse_conversation_prompt) for column in CONVERSATIONS),
    (frozenset({"prompt"}), _parse_prompt),
    (frozenset({"instruction"}), _parse_instruction),
)


def context_of(row: Row, fixed: str | None) -> str:
    """Text that a privileged teacher reads first: the fixed one, else the row's own, "" if it has none."""
    return _string(row, "context", "") if fixed is None else fixed


def _string(row: Row, column: str, otherwise: str | None = None) -> str:
    value = _present(row, column) if otherwise is None else row.get(column)
    if value is None and otherwise is not None:
        return otherwise
    if not isinstance(value, str):
        raise BadRowError(f"{column} is not a string", f"{column} must be a string, got {type(value).__name__}")
    return value


def _present(row: Row, column: str) -> object:
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
        raise BadRowError("no turn is trained", "every assistant turn is excluded from training")
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
