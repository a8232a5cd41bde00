"""Check that a chat template renders everything in a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from abkd.data.bad_rows import BadRowError
from abkd.data.formats import Chat
from abkd.data.messages import REASONING, Message, reasoning_of
from abkd.data.remarks import Remark
from abkd.data.template import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "\N{SECTION SIGN}"


def check_answer(chat: Chat, turn: int, answer: str, full: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Remark]:
    """Remarks about parts of a trained answer that are missing from its text.

    Raises BadRowError if the answer itself is missing.
    """
    chat = replace(chat, messages=chat.messages[: turn + 1])
    message = chat.messages[turn]
    calls = message.get("tool_calls", ())
    given = message.get("content", "")
    rest = answer.replace(given, "", 1) if isinstance(given, str) else answer  # the content may mention calls too
    for call in calls:
        if call["function"]["name"] not in rest and _is_lost(chat, call, full, tokenizer):
            raise BadRowError(
                "chat template does not render tool_calls",
                f"the chat template does not render the tool_calls of message {turn + 1}, so the answer would be lost: "
                "use a tokenizer whose template supports tools",
            )
    if not _is_rendered(chat, turn, answer, full, tokenizer):
        if not calls:
            raise BadRowError("chat template does not render the answer", f"the chat template omits message {turn + 1}")
        yield Remark("the chat template does not render the content of an answer that calls tools", warning=True)
    reasoning = reasoning_of(message)
    if reasoning and reasoning not in answer:
        field = next((name for name in REASONING if message.get(name)), "<think> in the content")
        yield Remark(
            f"the chat template does not render {field} of a trained answer, so it is not trained on", warning=True
        )


def check_prompt(chat: Chat, turn: int, prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadRowError if an earlier message is rendered after the generation prompt, in the answer.

    Templates that merge the system message into the next turn do this if that turn is the assistant's.
    """
    for index, message in enumerate(chat.messages[:turn]):
        content = message.get("content", "")
        if not isinstance(content, str) or content.strip() not in answer or content.strip() in prompt:
            continue
        probed = (*chat.messages[:index], {**message, "content": content + _PROBE}, *chat.messages[index + 1 : turn])
        if _PROBE not in render(probed, chat.template_arguments(), tokenizer, generation_prompt=True):
            raise BadRowError(
                "chat template writes an earlier turn into the answer",
                f"the chat template writes message {index + 1} ({message['role']}) into the answer, message "
                f"{turn + 1}, so it would be trained on: start with a user turn",
            )


def lost(chat: Chat, full: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Remark]:
    """Remarks about parts of other messages and of tools that are missing from ``full``, the conversation's text."""
    trained = set(chat.trained_turns())
    for index, message in enumerate(chat.messages):
        if index not in trained and not _is_rendered(chat, index, full, full, tokenizer):
            yield Remark(f"the chat template does not render a turn of role {message['role']!r}", warning=True)
    fields = {key for message in chat.messages for key in message} - {"role", "content", "tool_calls", *REASONING}
    for field in sorted(fields):
        values = [message[field] for message in chat.messages if field in message]
        if not all(isinstance(value, str) and value in full for value in values):
            bare = tuple({key: each for key, each in message.items() if key != field} for message in chat.messages)
            if _changes_nothing(chat, bare, full, tokenizer):
                yield Remark(f"the chat template does not render {field!r} of a message")
    names = [tool.get("function", tool).get("name") for tool in chat.tools or ()]
    if any(isinstance(name, str) and name not in full for name in names):
        yield Remark("the chat template does not render tools", warning=True)
    for name in chat.template_kwargs or ():
        if name not in str(tokenizer.chat_template):
            yield Remark(f"the chat template does not use {name!r} from chat_template_kwargs", warning=True)


def _is_lost(chat: Chat, call: Message, full: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the text is the same without this tool call of the last message."""
    *earlier, last = chat.messages
    others = [each for each in last["tool_calls"] if each is not call]
    bare = {"content": "", **{key: each for key, each in last.items() if key != "tool_calls"}}
    return _changes_nothing(chat, (*earlier, {**bare, "tool_calls": others} if others else bare), full, tokenizer)


def _is_rendered(chat: Chat, index: int, text: str, full: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the content of a message is in ``text``, possibly in another form."""
    message = chat.messages[index]
    given = message.get("content", "")
    content = given if isinstance(given, str) else "".join(part["text"] for part in given)
    if not content.strip() or content.strip() in text:
        return True
    visible = content.rpartition("</think>")[2].strip()
    if visible and visible in text:
        return True
    probe = content + _PROBE if isinstance(given, str) else [*given, {"type": "text", "text": _PROBE}]
    other: Message = {**message, "content": probe}
    messages = (*chat.messages[:index], other, *chat.messages[index + 1 :])
    return not _changes_nothing(chat, messages, full, tokenizer)


def _changes_nothing(chat: Chat, messages: tuple[Message, ...], full: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template also renders these messages as ``full``, with or without a generation prompt."""
    try:
        return full in (
            render(messages, chat.template_arguments(), tokenizer, generation_prompt=True),
            render(messages, chat.template_arguments(), tokenizer, generation_prompt=False),
        )
    except BadRowError:
        return False
