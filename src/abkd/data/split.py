"""The rows that are held out: whole groups of one prompt, chosen by their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from abkd.data.formats import CONVERSATIONS
from abkd.data.load import load_rows
from abkd.data.messages import role_of
from abkd.data.rows import Row, Rows, canonical
from abkd.errors import DataError


def split_held_out(rows: Iterable[Row], fraction: float, seed: int = 0) -> tuple[Rows, Rows]:
    """``(train, held out)``, both in the order given; ``fraction`` in (0, 1) of the rows is held out, at least one.

    Rows with the same prompt stay together, so that nothing held out was seen in training. Which prompts are held out
    depends on the hash of the prompt and on ``seed`` alone, not on the order of the rows.
    Raises DataError where there are not two different prompts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    rows = load_rows(rows)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_prompt_of(row), []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"{rows.name or 'the data set'} has one distinct prompt in {len(rows)} rows, "
            "so nothing can be held out without leaking: give a separate evaluation file"
        )
    held = _choose(groups, max(1, round(fraction * len(rows))), seed)
    return rows.take(i for i in range(len(rows)) if i not in held), rows.take(sorted(held))


def _choose(groups: Mapping[str, list[int]], wanted: int, seed: int) -> set[int]:
    """Whole groups, in the order of their hashes, as long as they fit into ``wanted`` rows; never none."""
    by_hash = sorted(groups, key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode()).digest())
    held: set[int] = set()
    for prompt in by_hash:
        if len(held) + len(groups[prompt]) <= wanted:
            held.update(groups[prompt])
    return held or set(groups[min(by_hash, key=lambda prompt: len(groups[prompt]))])


def _prompt_of(row: Row) -> str:
    """What two rows must not share across the split: the text that the first trained token is predicted from."""
    conversations = [row[name] for name in CONVERSATIONS if isinstance(row.get(name), list)]
    if row.get("prompt") is not None:
        prompt = row["prompt"]
    elif conversations:
        prompt = _opening(conversations[0])
    elif row.get("instruction") is not None:
        prompt = [row["instruction"], row.get("input") or ""]
    else:
        prompt = row.get("text", row)
    return canonical(prompt.strip() if isinstance(prompt, str) else prompt)


def _opening(messages: list[Any]) -> list[Any]:
    """The turns before the first assistant turn."""
    roles = [role_of(message) for message in messages]
    return messages[: roles.index("assistant")] if "assistant" in roles else messages
