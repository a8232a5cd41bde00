"""Render messages with a tokenizer's chat template, and report its failures.

A template is a program that comes with the model: it may reject a conversation, or fail in any way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import jinja2

from abkd.data.bad_rows import BadRowError
from abkd.data.messages import Message
from abkd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The date for templates that write today's date: Llama's own default when there is no clock. With the real date, rows
would change every day, so that no run could be resumed and no cache found on the next one."""

FAILS = "chat template fails on the conversation"
"""The reason for rows on which a template fails without a message of its own."""

_CLOCK = "strftime_now"
_STOPPED = (
    f"{{% macro {_CLOCK}(format) %}}{{{{ format"
    + "".join(f"|replace('%{each}', '{TODAY:%{each}}')" for each in "aAbBdHIjmMpSyY")
    + " }}{% endmacro %}{{ '' }}"  # last, since whitespace after a block is stripped
)
_PATIENCE, _MUCH_TEXT = 60.0, 10_000_000  # seconds, and characters, for two short turns
_QUESTION: Message = {"role": "user", "content": "a"}
_ANSWER: Message = {"role": "assistant", "content": "b"}
_CONVERSATIONS = (
    (_QUESTION,),
    (_QUESTION, _ANSWER),
    ({"role": "system", "content": "c"}, _QUESTION, _ANSWER, _QUESTION),
    (_QUESTION, {**_ANSWER, "reasoning_content": "d"}, _QUESTION, _ANSWER),
)
"""Conversations that different templates render differently."""

_OF_THE_MESSAGES = (jinja2.UndefinedError, KeyError, IndexError, AttributeError)
"""Errors of a template that expects messages of another form."""


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Reject a chat template that cannot render even a question and its answer.

    Raises:
        ConfigError: the template is broken, or does not finish within a minute.
    """
    if not tokenizer.chat_template:
        return
    turns = (_QUESTION, _ANSWER)
    outcome: list[Exception | str] = []
    worker = threading.Thread(target=_try, args=(turns, tokenizer, outcome), daemon=True)
    worker.start()
    worker.join(_PATIENCE)
    (result,) = outcome or [TimeoutError(f"it did not finish within {_PATIENCE:.0f} s")]
    if isinstance(result, str) and len(result) > _MUCH_TEXT:
        result = OverflowError(f"it writes {len(result):,} characters for two letters")
    if isinstance(result, Exception) and not _is_refusal(result):
        raise ConfigError(
            f"the tokenizer's chat template is broken ({_named(result)}), so no conversation can be rendered: fix "
            "chat_template.jinja (or chat_template in tokenizer_config.json)"
        ) from result


def same_template(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers with chat templates render short conversations alike."""
    if one.chat_template == other.chat_template:
        return True
    return all(_written(each, one) == _written(each, other) for each in _CONVERSATIONS)


def _written(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The rendered messages, as a prompt if they end with the user; None if the template fails."""
    try:
        return render(messages, {}, tokenizer, generation_prompt=messages[-1]["role"] == "user")
    except BadRowError:
        return None


def _is_refusal(error: Exception) -> bool:
    """Whether an error means that these messages do not suit the template; ``raise_exception`` raises TemplateError."""
    return type(error) is jinja2.TemplateError or isinstance(error, _OF_THE_MESSAGES)


def _try(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, outcome: list[Exception | str]) -> None:
    """Append the text of the first form that can be rendered, otherwise the error of the first form."""
    errors: list[Exception] = []
    for messages in forms(tuple(turns)):
        try:
            outcome.append(_apply(messages, {}, tokenizer, generation_prompt=False))
            return
        except Exception as error:  # noqa: BLE001  # a template may fail in any way
            errors.append(error)
    outcome.append(errors[0])


def render(
    messages: Sequence[Message],
    kwargs: Mapping[str, object],
    tokenizer: PreTrainedTokenizerBase,
    *,
    generation_prompt: bool,
) -> str:
    """The text that the template renders. Raises BadRowError with the message of any exception in the template.

    ``kwargs``: keyword arguments of ``apply_chat_template`` for the row (``Chat.template_arguments``).
    """
    try:
        text = _apply(messages, kwargs, tokenizer, generation_prompt=generation_prompt)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the tokenizer's chat template is broken ({_named(error)}): fix it") from error
    except Exception as error:  # a template is a program, and may fail in any way
        roles = ", ".join(str(message["role"]) for message in messages)
        if type(error) is jinja2.TemplateError:
            reason, detail = "chat template rejects the conversation", f"rejects the conversation: {error}"
        else:
            reason, detail = FAILS, f"fails on the conversation: {_named(error)}"
        raise BadRowError(reason, f"the chat template {detail} (roles: {roles})") from error
    leaked = next((value for value in _objects(messages) if str(value) in text), None)
    if leaked is not None:
        raise BadRowError(
            "chat template writes a Python object",
            f"the chat template must write text or JSON, got the Python object {str(leaked)[:80]}",
        )
    return text


def _apply(
    messages: Sequence[Message], kwargs: Mapping[str, object], tokenizer: Any, *, generation_prompt: bool
) -> str:
    given = [dict(message) for message in messages]
    template = tokenizer.get_chat_template(None, kwargs.get("tools")) if writes_date(tokenizer) else None
    return tokenizer.apply_chat_template(
        given,
        tokenize=False,
        add_generation_prompt=generation_prompt,
        **kwargs,
        **({} if template is None else {"chat_template": _STOPPED + template}),
    )


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template uses the current time (Llama 3.1 writes the date into every system message)."""
    return _CLOCK in str(tokenizer.chat_template)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# -- the forms of messages that templates expect ----------------------------------------------------------------------


def forms(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """The messages, then variants: empty content where it is missing, arguments as JSON text, content as parts."""
    seen: list[tuple[Message, ...]] = []
    for arguments in (_unchanged, _arguments_as_text):
        for content in (_unchanged, _with_content, _content_as_parts):
            form = tuple(content(arguments(message)) for message in messages)
            if form not in seen:
                seen.append(form)
                yield form


def _unchanged(message: Message) -> Message:
    return message


def _with_content(message: Message) -> Message:
    return message if "content" in message else {**message, "content": ""}


def _content_as_parts(message: Message) -> Message:
    content = message.get("content", "")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _arguments_as_text(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_call_as_text(call) for call in message["tool_calls"]]}


def _call_as_text(call: Message) -> Message:
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}


def _objects(messages: Sequence[Message]) -> Iterator[object]:
    """Values whose Python and JSON texts differ."""
    for message in messages:
        if isinstance(message.get("content"), list):
            yield message["content"]
        for call in message.get("tool_calls", ()):
            arguments = call["function"].get("arguments")
            if arguments and isinstance(arguments, dict) and str(arguments) != json.dumps(arguments):
                yield arguments
