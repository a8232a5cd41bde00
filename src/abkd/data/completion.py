"""Build sequences from rows: the prompt of a row, a completion appended to it, and padding examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from abkd.data.tokenize import Example
from abkd.errors import DataError


def prompt_of(example: Example) -> list[int]:
    """Tokens that a student completes: those before the last trained run, or all of them if nothing is trained.

    Raises DataError for a packed row, which has several prompts.
    """
    if "segments" in example:
        raise DataError("a packed row has several prompts, so it cannot be completed: set packing: false")
    return example["input_ids"][: _last_run(example["trained"])]


def teacher_prompt_of(example: Example) -> list[int]:
    """The same for the teacher; the student's prompt if both read the same."""
    if "teacher_input_ids" not in example or "teacher_trained" not in example:
        return prompt_of(example)
    return example["teacher_input_ids"][: _last_run(example["teacher_trained"])]


def with_completion(example: Example, ids: Sequence[int], origin: int, *, privileged: bool) -> Example:
    """The prompt of ``example`` followed by ``ids``, trained on exactly these (an EOS among them is a target).

    Args:
        example: a row; its pre-training text is kept.
        ids: the completion's tokens.
        origin: ``Origin.code`` of the completion's source.
        privileged: keep the teacher's own prompt if the row has one; otherwise both read the student's.
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
    """The first token of a row, which nothing predicts: a batch without rows still needs an input."""
    kept = cast("dict[str, object]", example)
    first = {name: value[:1] for name, value in kept.items() if isinstance(value, list)}
    for name in ("trained", "teacher_trained"):
        if name in first:
            first[name] = [False]
    return cast(Example, {**first, "is_padding": True})


def _last_run(trained: Sequence[bool]) -> int:
    """Start of the last trained run; the length if there is none."""
    end = len(trained)
    while end and not trained[end - 1]:
        end -= 1
    start = end
    while start and trained[start - 1]:
        start -= 1
    return start if end else len(trained)


def _trained(prompt: Sequence[int], written: Sequence[int]) -> list[bool]:
    return [False] * len(prompt) + [True] * len(written)
