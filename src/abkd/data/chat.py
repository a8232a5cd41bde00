"""Conversations to text by the tokenizer's chat template, in pieces that are trained or not.

A turn is what rendering up to and including it adds to rendering what comes before it with the generation prompt: the
text that the model reads in use. This needs no markers in the template. Where a template writes earlier turns in
another way once the conversation goes on (as those do that drop earlier reasoning), each answer is an example of its
own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from abkd.data.bad_rows import BadRowError
from abkd.data.formats import Chat
from abkd.data.messages import Message, reasoning_of
from abkd.data.remarks import Remark
from abkd.data.rendered import check_answer, check_prompt, lost
from abkd.data.template import FAILS, TODAY, forms, render, writes_date

Piece = tuple[str, bool]

OWN_EXAMPLES = Remark("the chat template writes earlier turns in another way, so an answer is an example of its own")
NO_END = Remark("the chat template ends an answer without a token of its own; EOS is put behind the last one")
ENDED_TWICE = Remark("an answer ends with the token that the chat template ends it with; it is written once")
DATED = Remark(
    f"the chat template writes today's date; every row gets {TODAY:%d %b %Y}, so that a run can be resumed tomorrow"
)
_OPEN, _CLOSE = "<think>", "</think>"


class ChatText(NamedTuple):
    """A conversation as text: one list of pieces for each example, and what is worth knowing about it."""

    examples: list[list[Piece]]
    remarks: tuple[Remark, ...] = ()


def chat_text(chat: Chat, tokenizer: Any) -> ChatText:
    """The conversation up to its last trained turn; without a trained turn it is a prompt, one piece.

    Messages are given to the template as most templates take them (text as one string, arguments of tool calls as
    objects), and where it stumbles over that, in the other forms that templates are written for.

    Raises BadRowError where no form can be rendered, or where the template leaves out what is to be trained.
    """
    errors: list[BadRowError] = []
    for messages in forms(chat.messages):
        try:
            return _chat_text(replace(chat, messages=messages), tokenizer)
        except BadRowError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.reason == FAILS)  # what is left out says more than a missing key


def _chat_text(chat: Chat, tokenizer: Any) -> ChatText:
    turns = chat.trained_turns()
    given, chat = chat, _ended_once(chat, turns, tokenizer)
    dated = [DATED] if writes_date(tokenizer) else []
    if not turns:
        prompt = render(chat.messages, chat.beside(), tokenizer, generation_prompt=True)
        return ChatText([[(prompt, False)]], (*lost(chat, prompt, tokenizer), *dated))
    examples: list[list[Piece]] = []
    remarks = [] if chat is given else [ENDED_TWICE]
    before, full = "", ""
    for turn in turns:
        prompt = render(chat.messages[:turn], chat.beside(), tokenizer, generation_prompt=True)
        full = render(chat.messages[: turn + 1], chat.beside(), tokenizer, generation_prompt=False)
        answer = _answer(prompt, full, turn, chat.messages[turn])
        check_prompt(chat, turn, prompt, answer, tokenizer)
        remarks += check_answer(chat, turn, answer, full, tokenizer)
        if not examples or not prompt.startswith(before):
            examples.append([])
            before = ""
        body, after = _split_turn_end(answer, tokenizer)
        examples[-1] += [(prompt[len(before) :], False), (body, True), (after, False)]
        before = prompt + answer
    asked = replace(chat, messages=chat.messages[: turns[-1] + 1])
    remarks += [*lost(asked, full, tokenizer), *([OWN_EXAMPLES] if len(examples) > 1 else []), *dated]
    closed = [_closed(pieces, tokenizer) for pieces in examples]
    return ChatText(closed, tuple(dict.fromkeys([*remarks, *([NO_END] if closed != examples else [])])))


def _ended_once(chat: Chat, turns: list[int], tokenizer: Any) -> Chat:
    """The conversation without an end of turn in an answer's content that the template writes once more."""
    messages = list(chat.messages)
    for turn in turns:
        content = messages[turn].get("content")
        bare = content.rstrip() if isinstance(content, str) else ""
        if not bare or bare[-1].isalnum() or bare[-1] in ".!?":  # as nearly all end, and no token of this kind does
            continue
        end = next((each for each in _ends_of(tokenizer) if bare.endswith(each)), None)
        if end is None:
            continue
        full = render(chat.messages[: turn + 1], chat.beside(), tokenizer, generation_prompt=False).rstrip()
        if full.endswith(end) and full.removesuffix(end).rstrip().endswith(end):
            messages[turn] = {**messages[turn], "content": bare.removesuffix(end)}
    return chat if messages == list(chat.messages) else replace(chat, messages=tuple(messages))


def _answer(prompt: str, text: str, turn: int, message: Message) -> str:
    """The text that the model must write after ``prompt`` for ``text`` to be the conversation."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    head, opened, rest = prompt.rpartition(_OPEN)
    if opened and not rest.strip() and text.startswith(head):
        return _behind_opened_reasoning(text[len(head) :], turn, message)
    raise BadRowError(
        "chat template is not prefix-stable",
        f"the chat template rewrites the generation prompt (the conversation with message {turn + 1} does not begin "
        "with what was rendered for the turns before), so the assistant's tokens cannot be told from the prompt's: use "
        "a template that begins an answer as its generation prompt does",
    )


def _behind_opened_reasoning(tail: str, turn: int, message: Message) -> str:
    """The answer behind a generation prompt that opens ``<think>``, where the template shows an answer without it."""
    if tail.lstrip().startswith(_OPEN):
        return tail.lstrip().removeprefix(_OPEN).lstrip("\n")
    if _CLOSE in tail:
        return tail
    reasoning = reasoning_of(message)
    if not reasoning:
        raise BadRowError(
            "answer without reasoning",
            f"the chat template opens {_OPEN} for an answer, and the answer in message {turn + 1} has no reasoning (in "
            f"reasoning_content, or between {_OPEN} and {_CLOSE}): a model would never answer so",
        )
    return f"{reasoning}\n{_CLOSE}\n\n{tail.lstrip()}"


def _split_turn_end(answer: str, tokenizer: Any) -> tuple[str, str]:
    """The answer up to its end-of-turn token, and the white space that a template puts behind that token."""
    body = answer.rstrip()
    return (body, answer[len(body) :]) if _ends(body, tokenizer) else (answer, "")


def _ends(text: str, tokenizer: Any) -> bool:
    return text.endswith(_ends_of(tokenizer))


def _ends_of(tokenizer: Any) -> tuple[str, ...]:
    """Tokens with which a template may end a turn."""
    return tuple({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})


def _closed(pieces: list[Piece], tokenizer: Any) -> list[Piece]:
    """The pieces of an example whose last answer ends in a token: EOS where the template writes none."""
    *earlier, (answer, trained), after = pieces
    if _ends(answer, tokenizer) or not tokenizer.eos_token:
        return pieces
    return [*earlier, (answer + tokenizer.eos_token, trained), after]
