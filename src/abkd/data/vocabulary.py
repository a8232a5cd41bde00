"""Check that two models have the same classes (tokens)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abkd.errors import ConfigError, VocabularyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space, trailing space ",
    "two  spaces,   three,\ttab\nnewline\n\n  indented\r\nwindows line",
    "UPPER lower MiXeD camelCase snake_case kebab-case",
    "0 1 12 123 1234 12345 3.14159 1,000,000 -7 2²",
    "def f(x: int) -> list[int]:\n    return [i ** 2 for i in range(x) if i % 2 == 0]\n",
    '<html><body class="a">&amp; it\'s "quoted" `code` $x_1^2$ \\n {braces} [brackets]</body></html>',
    "naïve café über straße São Paulo ﬁ ½ İstanbul",
    "Привет мир. 你好,世界。こんにちは 안녕하세요 مرحبا שלום नमस्ते",
    "🙂 👩‍👩‍👧‍👦 🇫🇷 e\u0301 \u00e9 \u200b\ufeff ￼ \x00 \x7f",
    "supercalifragilisticexpialidocious antidisestablishmentarianism xqzjkvw",
)
"""Texts that tokenizers with different vocabularies, merges, normalisation or pre-tokenisation encode differently."""


def check_same_tokenizer(student: Any, teacher: Any) -> None:
    """Check that both tokenizers have the same tokens and encode probes alike.

    The pad, BOS and EOS tokens may differ, and one vocabulary may have extra tokens after those of the other.

    Raises VocabularyError with the first probe, token or id that differs, ConfigError if one encodes at random.
    """
    check_deterministic(student, "the student's tokenizer")
    check_deterministic(teacher, "the teacher's tokenizer")
    if student is teacher:
        return
    for probe in PROBES:
        _compare(f"the text {probe!r}", _encode(student, probe), _encode(teacher, probe))
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    padding = {student.pad_token, teacher.pad_token} - {student.eos_token, teacher.eos_token, None}
    for token in sorted(set(student.all_special_tokens) - padding):
        _compare(f"the special token {token!r}", mine.get(token), theirs.get(token))
    added = {**student.get_added_vocab(), **teacher.get_added_vocab()}
    both = mine.keys() & theirs.keys()
    for token in [*sorted(added.keys() & both), *(both - added.keys())]:
        if mine[token] != theirs[token]:
            _compare(f"the token {token!r}", mine[token], theirs[token])
    _check_ids(mine, theirs, padding)
    text = " a ".join(sorted(added.keys() & both))
    _compare("the text of all added tokens", _encode(student, text), _encode(teacher, text))


def check_deterministic(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Reject a tokenizer that splits text differently each time, as subword regularisation does on purpose.

    Nothing could be compared or resumed, and a cache would hold other tokens than the run. ``what``: name of the
    tokenizer in the message. Raises ConfigError.
    """
    found = _sampling(tokenizer)
    if found is None:
        return
    name = getattr(tokenizer, "name_or_path", "")
    cause, way_out = found
    raise ConfigError(
        f"{what}{f' ({name})' if name else ''} must encode text deterministically, got one that encodes at random "
        f"({cause}): {way_out}"
    )


def _sampling(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """The cause of random encoding, and how to switch it off; None if the tokenizer is deterministic."""
    core = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)  # slow ones have none
    if dropout := getattr(core, "dropout", None):
        return f"BPE dropout {dropout:g}", "set dropout to null in its tokenizer.json"
    if (alpha := getattr(core, "alpha", None)) and getattr(core, "nbest_size", None) != 1:
        return f"Unigram sampling, alpha {alpha:g}", "set backend_tokenizer.model.alpha to None"
    if (getattr(tokenizer, "sp_model_kwargs", None) or {}).get("enable_sampling"):
        return "SentencePiece sampling", "leave enable_sampling out of sp_model_kwargs in its tokenizer_config.json"
    return None


def _check_ids(mine: dict[str, int], theirs: dict[str, int], padding: set[str]) -> None:
    """Check that no id stands for different tokens."""
    token_of = {token_id: token for token, token_id in theirs.items()}
    for token in sorted(mine.keys() - theirs.keys() - padding):
        other = token_of.get(mine[token])
        if other is not None and other not in padding:
            _compare(f"token {mine[token]}", token, other)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _compare(what: str, student: object, teacher: object) -> None:
    if student != teacher:
        raise VocabularyError(
            f"the student's and the teacher's tokenizers differ: {what} is {_short(student)} for the student and "
            f"{_short(teacher)} for the teacher. Choose models that share a tokenizer, or let the teacher generate the "
            "training text and fine-tune on it"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest token id (``len`` of a tokenizer if its ids have no gaps)."""
    return max(tokenizer.get_vocab().values()) + 1


def shared_vocabulary_size(tokenizer: PreTrainedTokenizerBase, rows_student: int, rows_teacher: int) -> int:
    """V, the number of classes that both heads are cut to: the existing tokens, without the padding of the heads.

    ``rows_student``, ``rows_teacher``: rows of the two head matrices. Raises VocabularyError if a head has fewer rows
    than the tokenizer has tokens.
    """
    size = vocabulary_size(tokenizer)
    for model, rows in (("student", rows_student), ("teacher", rows_teacher)):
        if rows < size:
            raise VocabularyError(
                f"the {model}'s head needs a row for each of the tokenizer's {size} tokens, got {rows}: use the "
                f"{model}'s own tokenizer, or resize its embeddings (model.resize_token_embeddings({size}))"
            )
    return size
