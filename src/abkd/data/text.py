"""Convert tokens to text and back, for completions that a model generates and a file stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from abkd.data.tokenize import decode, encode, opening_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text for the column ``prompt``, without the tokens that the tokenizer itself prepends (BOS)."""
    opening = list(opening_ids(tokenizer))
    inner = list(ids)[len(opening) :] if list(ids[: len(opening)]) == opening else ids
    return decode(list(inner), tokenizer)


def completion_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text for the column ``completion``, without the EOS, which is added again on reading."""
    ends = len(ids) > 0 and ids[-1] == tokenizer.eos_token_id
    return decode(list(ids[:-1] if ends else ids), tokenizer)


def completion_ids(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of ``completion`` after ``prompt``, as in a row with both; without EOS.

    Raises BadRowError if a string is not valid Unicode.
    """
    ids, written, _ = encode([(prompt, False), (completion, True)], tokenizer)
    return [token for token, mine in zip(ids, written, strict=True) if mine]
