"""Tokenise a row to ids and a mask of trained tokens, by position and never by id (the pad token may be EOS).

Text is split into pieces that are trained or not. A prompt is encoded alone, as at generation time, and what follows
is the rest of the joint encoding; if the joint encoding would merge tokens across the boundary, the piece is encoded
on its own. So the model is trained on exactly the prompt tokens that it will see at inference.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict

from abkd.data.bad_rows import BadRowError
from abkd.data.chat import ChatText, Piece, chat_text
from abkd.data.formats import Chat, PlainPair, PlainPrompt, PlainText, Record
from abkd.data.remarks import Remark
from abkd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOVED = Remark(
    "the boundary between prompt and answer is inside a token, which is trained as a part of the answer (if the prompt "
    "ends in a space, remove it)"
)


Form = Literal["chat", "plain", "text"]
"""Rendered by a chat template, a plain prompt (and completion), or plain text."""


class Example(TypedDict):
    """One tokenised row. ``trained[t]``: whether token t is a target, predicted at t - 1."""

    input_ids: list[int]
    trained: list[bool]
    segments: NotRequired[list[int]]
    """For packed rows, the original row of each token; trained is False at the first token of each."""
    teacher_input_ids: NotRequired[list[int]]
    """The teacher's input, if it reads another prompt; with the same number of trained tokens."""
    teacher_trained: NotRequired[list[bool]]
    pretrain_ids: NotRequired[list[int]]
    """Plain text for the language-modelling term."""
    origin: NotRequired[int]
    """Source of the completion: ``Origin.code``; 0, the data, by default."""
    is_padding: NotRequired[bool]
    """Padding without trained tokens, so that every process has the same number of batches; sources never see it."""


class TokenizedRow(NamedTuple):
    """The examples of one row (several if a chat template rewrites earlier answers), and remarks about it.

    ``cut``: number of trained tokens that did not fit into ``max_length``. ``form``: how the text was put together.
    """

    examples: list[Example]
    cut: int = 0
    remarks: tuple[Remark, ...] = ()
    form: Form = "text"


def tokenize(
    record: Record, tokenizer: PreTrainedTokenizerBase, max_length: int, *, context: str | None = None
) -> TokenizedRow:
    """Tokens of one row, truncated on the right to ``max_length``.

    EOS, or the end of the turn, is kept and trained unless it was truncated. A prompt without a completion has no
    trained tokens, and leaves room for one token.

    With a ``context``, the teacher has a separate side: that text in front of a plain prompt, or in the system message
    of a conversation, and after the prompt the same tokens as the student. The context comes on top of ``max_length``.
    An empty one makes both sides identical.

    Raises BadRowError if no trained token fits, or if the chat template does not allow the assistant's tokens to be
    identified. Raises DataError if the tokenizer has no EOS token, ConfigError if its template is broken.
    """
    text = _text(record, tokenizer)
    others = None if context is None else _text_after(context, record, text, tokenizer)
    examples: list[Example] = []
    cut, moved, too_long = 0, False, None
    for index, pieces in enumerate(text.examples):
        ids, trained, has_moved = _encode_row(pieces, record, tokenizer)
        try:
            example = _fitted(ids, trained, record, max_length)
        except BadRowError as error:  # answers before it may fit
            too_long, cut = too_long or error, cut + sum(trained)
            continue
        cut += sum(trained[len(example["input_ids"]) :])
        moved = moved or has_moved
        examples.append(example if others is None else _for_both(example, pieces, others[index], record, tokenizer))
    if too_long is not None and not examples:
        raise too_long
    return TokenizedRow(examples, cut, (*text.remarks, *([MOVED] if moved else [])))


def _fitted(ids: list[int], trained: list[bool], record: Record, max_length: int) -> Example:
    if isinstance(record, PlainPrompt) or (isinstance(record, Chat) and not record.trained_turns()):
        return _fitting(ids, max_length)
    return _cut(ids, trained, max_length, isinstance(record, PlainText))


def _for_both(
    example: Example, pieces: list[Piece], others: list[Piece], record: Record, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """The example with a separate side for a teacher that reads ``others`` where the student reads ``pieces``."""
    mine, theirs = (_prompt_ids(record, each, tokenizer) for each in (pieces, others))
    rest = slice(len(mine), None)
    ids, trained = theirs + example["input_ids"][rest], [False] * len(theirs) + example["trained"][rest]
    return Example(**{**example, "teacher_input_ids": ids, "teacher_trained": trained})


def _text(record: Record, tokenizer: PreTrainedTokenizerBase) -> ChatText:
    """The row's text in pieces; the first is not trained (and is empty if all of the text is)."""
    match record:
        case Chat():
            return chat_text(record, tokenizer)
        case PlainPair(prompt, completion):
            return ChatText([[(prompt, False), (completion, True)]])
        case PlainPrompt(prompt):
            return ChatText([[(prompt, False)]])
        case PlainText(text):
            return ChatText([[("", False), (text, True)]])


def _text_after(context: str, record: Record, text: ChatText, tokenizer: PreTrainedTokenizerBase) -> list[list[Piece]]:
    """The same pieces with ``context`` in, or before, the first of each example."""
    if not isinstance(record, Chat):
        return [[(context + pieces[0][0], False), *pieces[1:]] for pieces in text.examples]
    theirs = chat_text(record.with_context(context), tokenizer).examples
    if [pieces[1:] for pieces in theirs] != [pieces[1:] for pieces in text.examples]:
        raise BadRowError(
            "chat template rewrites the conversation for a system message",
            "the chat template renders the turns after the prompt differently when there is a system message, so the "
            "teacher cannot be given a context: use a template that renders these turns alike",
        )
    return theirs


def _prompt_ids(record: Record, pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the first piece, with the tokenizer's opening tokens as in the whole row."""
    ids, _, _ = encode(pieces[:1], tokenizer)
    return ids if isinstance(record, Chat) else _opened(ids, tokenizer)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a whole document: the tokenizer's opening tokens (BOS), the text, EOS. Raises like ``tokenize``."""
    ids, trained, _ = encode([(text, True)], tokenizer)
    return _with_specials(ids, trained, tokenizer)[0]


def _encode_row(
    pieces: list[Piece], record: Record, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool], bool]:
    """Like ``encode``, with the special tokens around the text; a chat template writes those itself."""
    ids, trained, moved = encode(pieces, tokenizer)
    if not isinstance(record, Chat):
        ids, trained = _with_specials(ids, trained, tokenizer, ends=not isinstance(record, PlainPrompt))
    return ids, trained, moved


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def encode(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool], bool]:
    """Ids of all pieces in order, whether each id is trained, and whether a boundary had to move.

    A piece's ids depend only on the text up to its end, and together the ids decode to the text.
    """
    _check_unicode("".join(piece for piece, _ in pieces))
    text, moved = "", False
    ids: list[int] = []
    trained: list[bool] = []
    for piece, is_trained in pieces:
        text += piece
        joint = _ids(text, tokenizer)
        new = joint[len(ids) :] if joint[: len(ids)] == ids else _continuation(ids, joint, piece, tokenizer)
        if new is None:
            kept = next(
                i for i, (one, other) in enumerate(zip([*ids, None], [*joint, None], strict=False)) if one != other
            )
            ids, trained, new, moved = ids[:kept], trained[:kept], joint[kept:], True
        ids += new
        trained += [is_trained] * len(new)
    return ids, trained, moved


def _continuation(ids: list[int], joint: list[int], piece: str, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Ids of ``piece`` after ``ids`` that decode like ``joint``: encoded on its own, or after a line break.

    Tokenizers of the SentencePiece kind put a space before a text on its own, but not after a line break. None if
    neither encoding fits.
    """
    whole, line = decode(joint, tokenizer), _ids("\n", tokenizer)
    after = _ids("\n" + piece, tokenizer)
    for found in (_ids(piece, tokenizer), after[len(line) :] if after[: len(line)] == line else None):
        if found is not None and decode(ids + found, tokenizer) == whole:
            return found
    return None


def decode(ids: list[int], tokenizer: Any) -> str:
    """The text of ``ids``, including special tokens and with spaces unchanged."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"the text has a lone surrogate at character {error.start}, which cannot be encoded"
        raise BadRowError("text is not valid Unicode", detail) from error


def _with_specials(
    ids: list[int], trained: list[bool], tokenizer: Any, *, ends: bool = True
) -> tuple[list[int], list[bool]]:
    """Prepend the opening tokens and, if the text ``ends``, append EOS, unless the text already has them there."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no EOS token, so a student cannot learn to stop: set tokenizer.eos_token")
    opened = _opened(ids, tokenizer)
    trained = [False] * (len(opened) - len(ids)) + trained
    return ([*opened, eos], [*trained, True]) if ends and opened[-1:] != [eos] else (opened, trained)


def _opened(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    opening = list(opening_ids(tokenizer))
    return ids if ids[: len(opening)] == opening else opening + ids


@lru_cache(maxsize=8)
def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that the tokenizer prepends to a text. Those that it appends are ignored, since EOS is added here."""
    plain, full = _ids("a", tokenizer), tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _fitting(ids: list[int], max_length: int) -> Example:
    if len(ids) >= max_length:
        raise _too_long("prompt has", len(ids), max_length)
    return Example(input_ids=ids, trained=[False] * len(ids))


def _cut(ids: list[int], trained: list[bool], max_length: int, is_text: bool) -> Example:
    trained = [False, *trained[1:]]  # nothing predicts the first token
    last = max((t for t, flag in enumerate(trained) if flag), default=-1)
    if last < 0:
        raise BadRowError("no token to train on")
    if not any(trained[:max_length]):
        what = "text needs" if is_text else "prompt has"
        raise _too_long(what, trained.index(True) + (1 if is_text else 0), max_length)
    end = min(max_length, last + 1)  # tokens after the last trained one have no effect
    return Example(input_ids=ids[:end], trained=trained[:end])


def _too_long(what: str, count: int, max_length: int) -> BadRowError:
    return BadRowError(
        "prompt longer than max_length",
        f"{what} {count} tokens, max_length is {max_length}: raise max_length or shorten the prompt",
    )
