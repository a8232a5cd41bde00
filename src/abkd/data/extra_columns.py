"""Columns other than the text: variables of the chat template, and images, video or audio."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache

from abkd.data.bad_rows import BadRowError
from abkd.data.messages import without_nulls
from abkd.data.rows import Row

TEMPLATE_KWARGS = "chat_template_kwargs"

_NOT_TEXT = {
    **dict.fromkeys(("image", "images"), "images"),
    **dict.fromkeys(("video", "videos"), "videos"),
    **dict.fromkeys(("audio", "audios"), "audio"),
}


def read_template_kwargs(row: Row) -> dict[str, object] | None:
    """The row's ``chat_template_kwargs`` (as in TRL), or None if it has none.

    Raises BadRowError if they are not a mapping, or override an argument of ``apply_chat_template`` itself.
    """
    given = row.get(TEMPLATE_KWARGS)
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise BadRowError(
            f"{TEMPLATE_KWARGS} is not an object",
            f"{TEMPLATE_KWARGS} must be an object such as {{enable_thinking: false}}, got {type(given).__name__}",
        )
    kept: dict[str, object] = without_nulls(given)
    taken = sorted(kept.keys() & _reserved_names())
    if taken:
        raise BadRowError(
            f"{TEMPLATE_KWARGS} sets a reserved name",
            f"{TEMPLATE_KWARGS} must set variables of the chat template, got {', '.join(map(repr, taken))}, reserved "
            "by apply_chat_template: remove it (tools have a separate column)",
        )
    return kept or None


@cache
def _reserved_names() -> frozenset[str]:
    """Names reserved by ``apply_chat_template``: its arguments, and what it passes to every template."""
    from transformers import PreTrainedTokenizerBase

    own = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*own, "messages", "conversations", "strftime_now", "raise_exception"})


def check_text_only(row: Row) -> None:
    """Raise BadRowError if a row has images, video or audio in a separate column."""
    for column, kind in _NOT_TEXT.items():
        if column in row and _holds(row[column]):
            raise BadRowError(
                f"has {kind}",
                f"it has {kind} in column {column!r}, but a language model reads only text: remove the row, or the "
                "column if the text does not depend on it",
            )


def _holds(value: object) -> bool:
    """Whether the value is not empty; tables represent missing values in many ways."""
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return bool(value) if isinstance(value, str | bytes | int) else value is not None
