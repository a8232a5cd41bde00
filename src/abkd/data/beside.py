"""What a row has beside its text: variables for the chat template, and things that no language model reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from abkd.data.bad_rows import BadRowError
from abkd.data.messages import without_nulls
from abkd.data.rows import Row

TEMPLATE_KWARGS = "chat_template_kwargs"

_NOT_TEXT = {
    **dict.fromkeys(("image", "images"), "images"),
    **dict.fromkeys(("video", "videos"), "videos"),
    **dict.fromkeys(("audio", "audios"), "audio"),
}


def read_template_kwargs(row: Row) -> dict[str, Any] | None:
    """What the row's chat template is given, as TRL has it; None where that is nothing.

    Raises BadRowError where it is no mapping, or would change what ``apply_chat_template`` itself is told.
    """
    given = row.get(TEMPLATE_KWARGS)
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise BadRowError(
            f"{TEMPLATE_KWARGS} is not an object",
            f"{TEMPLATE_KWARGS} is {type(given).__name__}, expected an object such as {{enable_thinking: false}}",
        )
    kept: dict[str, Any] = without_nulls(given)
    taken = sorted(kept.keys() & _own_names())
    if taken:
        raise BadRowError(
            f"{TEMPLATE_KWARGS} sets what is not a variable of the template",
            f"{TEMPLATE_KWARGS} sets {', '.join(map(repr, taken))}, which apply_chat_template takes itself: expected "
            "variables of the chat template (tools have a column of their own)",
        )
    return kept or None


@cache
def _own_names() -> frozenset[str]:
    """The arguments of ``apply_chat_template``, and what it gives every template under a name of its own."""
    from transformers import PreTrainedTokenizerBase

    own = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*own, "messages", "conversations", "strftime_now", "raise_exception"})


def check_text_only(row: Row) -> None:
    """Raise BadRowError where a row has images or sound in a column of its own, which its text speaks of."""
    for column, kind in _NOT_TEXT.items():
        if column in row and _holds(row[column]):
            raise BadRowError(
                f"has {kind}",
                f"it has {kind} in column {column!r}, and a language model reads text only: leave the row out, or the "
                "column if the text does not need it",
            )


def _holds(value: Any) -> bool:
    """Whether there is anything in it; tables write what is not there in many ways."""
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return bool(value) if isinstance(value, str | bytes | int) else value is not None
