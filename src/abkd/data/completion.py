"""Sequences out of rows: the prompt of a row, a completion behind it, and the stand-in where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from abkd.data.tokenize import Example
from abkd.errors import DataError


def prompt_of(example: Example) -> list[int]:
    """What a student completes: the tokens before the last trained run, or all of them where nothing is trained.

    Raises DataError for a packed row, which has several prompts.
    """
    if "segments" in example:
        raise DataError("a packed row has several prompts, so nothing can be written to it: set packing: false")
    return example["input_ids"][: _border(example["trained"])]


def teacher_prompt_of(example: Example) -> list[int]:
    """The same of what the teacher reads; the student's prompt where both read the same."""
    if "teacher_input_ids" not in example or "teacher_trained" not in example:
        return prompt_of(example)
    return example["teacher_input_ids"][: _border(example["teacher_trained"])]


def with_completion(example: Example, ids: Sequence[int], origin: int, *, privileged: bool) -> Example:
    """The prompt of ``example`` with ``ids`` behind it, trained on exactly these (an EOS among them is a target).

    Args:
        example: a row; its pre-training text stays with it.
        ids: the completion's tokens.
        origin: index in ``abkd.term.ORIGINS`` of who wrote it.
        privileged: keep the teacher's own prompt where the row has one; otherwise both read the student's.
    """
    written = list(ids)
    mine = prompt_of(example)
    made = Example(input_ids=mine + written, trained=_trained(mine, written), origin=origin)
    if privileged and "teacher_input_ids" in example:
        theirs = teacher_prompt_of(example)
        made["teacher_input_ids"] = theirs + written
        made["teacher_trained"] = _trained(theirs, written)
    if "pretrain_ids" in example:
        made["pretrain_ids"] = example["pretrain_ids"]
    return made


def padding_example(example: Example) -> Example:
    """The first token of a row, which nothing predicts: a batch without rows still needs something to read."""
    kept = cast("dict[str, Any]", example)
    first = {name: value[:1] for name, value in kept.items() if isinstance(value, list)}
    for name in ("trained", "teacher_trained"):
        if name in first:
            first[name] = [False]
    return cast(Example, {**first, "is_padding": True})


def _border(trained: Sequence[bool]) -> int:
    """Where the last trained run begins; the length where there is none."""
    end = len(trained)
    while end and not trained[end - 1]:
        end -= 1
    start = end
    while start and trained[start - 1]:
        start -= 1
    return start if end else len(trained)


def _trained(prompt: Sequence[int], written: Sequence[int]) -> list[bool]:
    return [False] * len(prompt) + [True] * len(written)
