"""One row to token ids and the mask of trained tokens, by position and never by id (the pad token may be EOS).

Text is cut into pieces that are trained or not. A prompt is encoded as it will be at generation time, alone, and what
follows is the rest of the joint encoding; where the joint encoding would merge a token across the border, the piece is
encoded on its own. So the model is trained on exactly the prompt tokens that it will see in use.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NotRequired, TypedDict

import jinja2

from abkd.data.formats import BadRowError, Chat, PlainPair, PlainPrompt, PlainText, Record
from abkd.errors import DataError


class Example(TypedDict):
    """One tokenised row. ``trained[t]`` says that token t is a target, predicted at t - 1."""

    input_ids: list[int]
    trained: list[bool]
    segments: NotRequired[list[int]]
    """Packed rows: which original row each token belongs to; trained is False at the first token of each."""
    teacher_input_ids: NotRequired[list[int]]
    """What the teacher reads instead, where it sees another prompt; with as many trained tokens."""
    teacher_trained: NotRequired[list[bool]]
    pretrain_ids: NotRequired[list[int]]
    """Plain text for the language-modelling term."""
    origin: NotRequired[int]
    """Who wrote it: index in ``abkd.term.ORIGINS``; 0, the data, where it is not said."""
    empty: NotRequired[bool]
    """A stand-in without anything trained, so that every process has as many batches; sources never see it."""


Piece = tuple[str, bool]


def tokenize(record: Record, tokenizer: Any, max_length: int, *, context: str | None = None) -> tuple[Example, bool]:
    """Tokens of one row, cut on the right to ``max_length``, and whether something trained was cut off.

    EOS, or the end of the turn, is kept and trained unless it was cut off. A prompt without completion has nothing
    trained, and leaves room for one token.

    With a ``context`` the teacher has a side of its own: that text before a plain prompt as it is, or in the system
    message of a conversation; then the tokens that the student reads after its prompt. It comes on top of
    ``max_length``. An empty one makes both sides alike.

    Raises BadRowError where no trained token fits, or where the chat template does not allow to say which tokens the
    assistant wrote. Raises DataError where the tokenizer lacks an EOS token or a chat template.
    """
    pieces = _pieces(record, tokenizer)
    ids, trained = _encode(pieces, tokenizer)
    if not isinstance(record, Chat):  # a template writes the special tokens itself
        ids, trained = _with_specials(ids, trained, tokenizer, ends=not isinstance(record, PlainPrompt))
    if isinstance(record, PlainPrompt) or (isinstance(record, Chat) and not record.trained_turns()):
        example, cut = _fitting(ids, max_length), False
    else:
        example, cut = _cut(ids, trained, max_length, isinstance(record, PlainText))
    if context is not None:
        mine = _prompt_ids(record, pieces, tokenizer)
        theirs = _prompt_ids(record, _pieces_after(context, record, pieces, tokenizer), tokenizer)
        rest = slice(len(mine), None)
        example["teacher_input_ids"] = theirs + example["input_ids"][rest]
        example["teacher_trained"] = [False] * len(theirs) + example["trained"][rest]
    return example, cut


def _pieces(record: Record, tokenizer: Any) -> list[Piece]:
    """The row's text in pieces; the first is not trained (and is empty where all of the text is)."""
    match record:
        case Chat():
            return _chat_pieces(record, tokenizer)
        case PlainPair(prompt, completion):
            return [(prompt, False), (completion, True)]
        case PlainPrompt(prompt):
            return [(prompt, False)]
        case PlainText(text):
            return [("", False), (text, True)]


def _pieces_after(context: str, record: Record, pieces: list[Piece], tokenizer: Any) -> list[Piece]:
    """The same pieces with ``context`` in, or before, the first."""
    if not isinstance(record, Chat):
        return [(context + pieces[0][0], False), *pieces[1:]]
    theirs = _chat_pieces(record.with_context(context), tokenizer)
    if theirs[1:] != pieces[1:]:
        raise BadRowError(
            "chat template rewrites the conversation for a system message",
            "the chat template writes what follows the prompt in another way when there is a system message, so the "
            "teacher cannot be given a context: use a template that keeps turns as they are",
        )
    return theirs


def _prompt_ids(record: Record, pieces: list[Piece], tokenizer: Any) -> list[int]:
    """Ids of the first piece, with the tokenizer's opening tokens as the whole row has them."""
    ids, _ = _encode(pieces[:1], tokenizer)
    return ids if isinstance(record, Chat) else _opened(ids, tokenizer)


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a whole document: the tokenizer's opening tokens (BOS), the text, EOS. Raises as ``tokenize``."""
    return _with_specials(*_encode([(text, True)], tokenizer), tokenizer)[0]


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _encode(pieces: list[Piece], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids of all pieces in order; a piece's ids depend only on the text up to its end."""
    _check_unicode("".join(piece for piece, _ in pieces))
    text, ids, trained = "", [], []
    for piece, is_trained in pieces:
        text += piece
        joint = _ids(text, tokenizer)
        new = joint[len(ids) :] if joint[: len(ids)] == ids else _ids(piece, tokenizer)
        ids += new
        trained += [is_trained] * len(new)
    return ids, trained


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"the text has half of a surrogate pair at character {error.start}, which no encoding can write"
        raise BadRowError("text is not valid Unicode", detail) from error


def _with_specials(
    ids: list[int], trained: list[bool], tokenizer: Any, *, ends: bool = True
) -> tuple[list[int], list[bool]]:
    """Opening tokens in front and, where a text ``ends``, EOS behind it, unless the text itself has them there."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no EOS token, so a student could not learn to stop: set tokenizer.eos_token")
    opened = _opened(ids, tokenizer)
    trained = [False] * (len(opened) - len(ids)) + trained
    return ([*opened, eos], [*trained, True]) if ends and opened[-1:] != [eos] else (opened, trained)


def _opened(ids: list[int], tokenizer: Any) -> list[int]:
    opening = list(_opening_ids(tokenizer))
    return ids if ids[: len(opening)] == opening else opening + ids


@lru_cache(maxsize=8)
def _opening_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts in front of a text. Tokens that it adds behind are left out: EOS is ours to add."""
    plain, full = _ids("a", tokenizer), tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _chat_pieces(chat: Chat, tokenizer: Any) -> list[Piece]:
    """The conversation up to its last trained turn; what the template writes for a trained turn is a trained piece.

    A turn is what rendering up to and including it adds to rendering what comes before it with the generation prompt.
    This needs no markers in the template, only that each of these texts begins with the one before it. Where no turn
    is trained, the conversation is a prompt.
    """
    pieces: list[Piece] = []
    text = ""
    if not chat.trained_turns():
        return [(_render(chat, len(chat.messages), tokenizer, generation_prompt=True), False)]
    for turn in chat.trained_turns():
        prompt = _render(chat, turn, tokenizer, generation_prompt=True)
        pieces.append((_rest(prompt, text, turn, "before"), False))
        text = _render(chat, turn + 1, tokenizer, generation_prompt=False)
        answer, after = _split_turn_end(_rest(text, prompt, turn, "with"), tokenizer)
        pieces += [(answer, True), (after, False)]
    return pieces


def _rest(text: str, start: str, turn: int, which: str) -> str:
    if not text.startswith(start):
        raise BadRowError(
            "chat template is not prefix-stable",
            f"the chat template rewrites earlier text (the conversation {which} message {turn + 1} does not begin with "
            "what was rendered for the turns before), so the assistant's tokens cannot be told from the prompt's: "
            "use a template that keeps earlier turns as they are",
        )
    return text[len(start) :]


def _split_turn_end(answer: str, tokenizer: Any) -> tuple[str, str]:
    """The answer up to its end-of-turn token, and the white space that a template puts behind that token."""
    body = answer.rstrip()
    ends_in_special = any(body.endswith(token) for token in tokenizer.get_added_vocab())
    return (body, answer[len(body) :]) if ends_in_special else (answer, "")


def _render(chat: Chat, turns: int, tokenizer: Any, *, generation_prompt: bool) -> str:
    messages = [dict(message) for message in chat.messages[:turns]]
    try:
        return tokenizer.apply_chat_template(
            messages, tools=chat.tools, tokenize=False, add_generation_prompt=generation_prompt
        )
    except jinja2.TemplateError as error:
        raise BadRowError("chat template refuses the conversation", f"the chat template refuses it: {error}") from error


def _fitting(ids: list[int], max_length: int) -> Example:
    if len(ids) >= max_length:
        raise _too_long("prompt has", len(ids), max_length)
    return Example(input_ids=ids, trained=[False] * len(ids))


def _cut(ids: list[int], trained: list[bool], max_length: int, is_text: bool) -> tuple[Example, bool]:
    trained = [False, *trained[1:]]  # nothing predicts the first token
    last = max((t for t, flag in enumerate(trained) if flag), default=-1)
    if last < 0:
        raise BadRowError("no token to train on")
    if not any(trained[:max_length]):
        what = "text needs" if is_text else "prompt has"
        raise _too_long(what, trained.index(True) + (1 if is_text else 0), max_length)
    end = min(max_length, last + 1)  # what follows the last trained token changes nothing
    return Example(input_ids=ids[:end], trained=trained[:end]), end <= last


def _too_long(what: str, count: int, max_length: int) -> BadRowError:
    return BadRowError(
        "prompt longer than max_length",
        f"{what} {count} tokens, max_length is {max_length}: raise max_length or shorten the prompt",
    )
