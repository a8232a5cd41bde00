"""Tokens to text and back, for what a model writes and a file keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abkd.data.tokenize import decode, encode, opening_ids


def prompt_text(ids: Sequence[int], tokenizer: Any) -> str:
    """A prompt as the column ``prompt`` holds it: without the tokens that the tokenizer puts in front itself (BOS)."""
    opening = list(opening_ids(tokenizer))
    inner = list(ids)[len(opening) :] if list(ids[: len(opening)]) == opening else ids
    return decode(list(inner), tokenizer)


def completion_text(ids: Sequence[int], tokenizer: Any) -> str:
    """A completion as the column ``completion`` holds it: without the EOS that whoever reads it puts back."""
    ends = len(ids) > 0 and ids[-1] == tokenizer.eos_token_id
    return decode(list(ids[:-1] if ends else ids), tokenizer)


def completion_ids(prompt: str, completion: str, tokenizer: Any) -> list[int]:
    """The tokens of ``completion`` behind ``prompt``, as a row of both has them; without EOS.

    Raises BadRowError where a text is not valid Unicode.
    """
    ids, written, _ = encode([(prompt, False), (completion, True)], tokenizer)
    return [token for token, mine in zip(ids, written, strict=True) if mine]
