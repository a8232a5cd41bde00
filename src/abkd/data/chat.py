"""Render conversations with the tokenizer's chat template, as pieces of text that are trained or not.

An answer is the text that rendering up to and including it adds to the preceding conversation rendered with the
generation prompt, which is the text that the model reads at inference. This needs no markers in the template. If a
template renders earlier turns differently once the conversation continues (such as those that drop earlier reasoning),
each answer becomes a separate example.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from abkd.data.bad_rows import BadRowError
from abkd.data.formats import Chat
from abkd.data.messages import Message, reasoning_of
from abkd.data.remarks import Remark
from abkd.data.rendered import check_answer, check_prompt, lost
from abkd.data.template import FAILS, TODAY, forms, render, writes_date

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = tuple[str, bool]

OWN_EXAMPLES = Remark("the chat template renders earlier turns differently, so each answer is a separate example")
NO_END = Remark("the chat template does not end answers with a special token; EOS is appended to the last answer")
ENDED_TWICE = Remark("an answer already contains the end-of-turn token of the chat template; it is written once")
DATED = Remark(
    f"the chat template writes today's date; every row gets {TODAY:%d %b %Y}, so that a run can be resumed later"
)
_OPEN, _CLOSE = "<think>", "</think>"


class ChatText(NamedTuple):
    """A conversation as text: one list of pieces per example, and remarks about it."""

    examples: list[list[Piece]]
    remarks: tuple[Remark, ...] = ()


def chat_text(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> ChatText:
    """The conversation up to its last trained turn; without a trained turn it is a prompt, in one piece.

    Messages are passed to the template in the form that most templates expect (text as one string, arguments of tool
    calls as objects); if it fails on that, the other forms in use are tried.

    Raises BadRowError if no form can be rendered, or if the template omits text that is to be trained on.
    """
    errors: list[BadRowError] = []
    for messages in forms(chat.messages):
        try:
            return _chat_text(replace(chat, messages=messages), tokenizer)
        except BadRowError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.reason == FAILS)  # an omission is more informative than a missing key


def _chat_text(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> ChatText:
    turns = chat.trained_turns()
    given, chat = chat, _ended_once(chat, turns, tokenizer)
    dated = [DATED] if writes_date(tokenizer) else []
    if not turns:
        prompt = render(chat.messages, chat.template_arguments(), tokenizer, generation_prompt=True)
        return ChatText([[(prompt, False)]], (*lost(chat, prompt, tokenizer), *dated))
    examples: list[list[Piece]] = []
    remarks = [] if chat is given else [ENDED_TWICE]
    before, full = "", ""
    for turn in turns:
        prompt = render(chat.messages[:turn], chat.template_arguments(), tokenizer, generation_prompt=True)
        full = render(chat.messages[: turn + 1], chat.template_arguments(), tokenizer, generation_prompt=False)
        answer = _answer(prompt, full, turn, chat.messages[turn])
        check_prompt(chat, turn, prompt, answer, tokenizer)
        remarks += check_answer(chat, turn, answer, full, tokenizer)
        if not examples or not prompt.startswith(before):
            examples.append([])
            before = ""
        body, after = _split_turn_end(answer, tokenizer)
        examples[-1] += [(prompt[len(before) :], False), (body, True), (after, False)]
        before = prompt + answer
    rendered = replace(chat, messages=chat.messages[: turns[-1] + 1])
    remarks += [*lost(rendered, full, tokenizer), *([OWN_EXAMPLES] if len(examples) > 1 else []), *dated]
    closed = [_closed(pieces, tokenizer) for pieces in examples]
    return ChatText(closed, tuple(dict.fromkeys([*remarks, *([NO_END] if closed != examples else [])])))


def _ended_once(chat: Chat, turns: list[int], tokenizer: PreTrainedTokenizerBase) -> Chat:
    """The conversation, without end-of-turn tokens in answers if the template writes them as well."""
    messages = list(chat.messages)
    for turn in turns:
        content = messages[turn].get("content")
        bare = content.rstrip() if isinstance(content, str) else ""
        if not bare or bare[-1].isalnum() or bare[-1] in ".!?":  # most answers end so, no end-of-turn token does
            continue
        end = next((each for each in _ends_of(tokenizer) if bare.endswith(each)), None)
        if end is None:
            continue
        full = render(chat.messages[: turn + 1], chat.template_arguments(), tokenizer, generation_prompt=False).rstrip()
        if full.endswith(end) and full.removesuffix(end).rstrip().endswith(end):
            messages[turn] = {**messages[turn], "content": bare.removesuffix(end)}
    return chat if messages == list(chat.messages) else replace(chat, messages=tuple(messages))


def _answer(prompt: str, text: str, turn: int, message: Message) -> str:
    """The text that the model must generate after ``prompt`` for the conversation to become ``text``."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    head, opened, rest = prompt.rpartition(_OPEN)
    if opened and not rest.strip() and text.startswith(head):
        return _after_opened_reasoning(text[len(head) :], turn, message)
    raise BadRowError(
        "chat template is not prefix-stable",
        f"the chat template rewrites the generation prompt (the conversation with message {turn + 1} does not start "
        "with the prompt rendered for the previous turns), so the assistant's tokens cannot be separated from the "
        "prompt's: use a template whose answers start with its generation prompt",
    )


def _after_opened_reasoning(tail: str, turn: int, message: Message) -> str:
    """The answer after a generation prompt that opens ``<think>``, if the template renders answers without the tag."""
    if tail.lstrip().startswith(_OPEN):
        return tail.lstrip().removeprefix(_OPEN).lstrip("\n")
    if _CLOSE in tail:
        return tail
    reasoning = reasoning_of(message)
    if not reasoning:
        raise BadRowError(
            "answer without reasoning",
            f"the generation prompt of the chat template opens {_OPEN}, but the answer in message {turn + 1} has no "
            f"reasoning (in reasoning_content, or between {_OPEN} and {_CLOSE}): a model would never generate it",
        )
    return f"{reasoning}\n{_CLOSE}\n\n{tail.lstrip()}"


def _split_turn_end(answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The answer up to its end-of-turn token, and the whitespace that the template puts after that token."""
    body = answer.rstrip()
    return (body, answer[len(body) :]) if _ends(body, tokenizer) else (answer, "")


def _ends(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return text.endswith(_ends_of(tokenizer))


def _ends_of(tokenizer: Any) -> tuple[str, ...]:
    """Tokens that a template may use to end a turn."""
    return tuple({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})


def _closed(pieces: list[Piece], tokenizer: Any) -> list[Piece]:
    """The pieces of an example, with EOS appended to the last answer if the template ends it without a token."""
    *earlier, (answer, trained), after = pieces
    if _ends(answer, tokenizer) or not tokenizer.eos_token:
        return pieces
    return [*earlier, (answer + tokenizer.eos_token, trained), after]
