"""Hold out rows for evaluation: whole groups that share a prompt, chosen by the prompt's hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from abkd.data.formats import CONVERSATIONS
from abkd.data.load import load_rows
from abkd.data.messages import role_of
from abkd.data.progress import progress
from abkd.data.rows import Row, Rows, canonical
from abkd.data.stored import StoredRows
from abkd.errors import DataError

Indices = npt.NDArray[np.int64]


def split_held_out(
    rows: Iterable[Row], fraction: float, seed: int = 0, *, columns: Sequence[str] | None = None
) -> tuple[Rows, Rows]:
    """``(train, held out)``, both in the order given; ``fraction`` in (0, 1) of the rows is held out, at least one.

    Rows with the same prompt (with ``columns``: with the same values in these columns) stay together, so that no
    held-out prompt is seen in training. Which prompts are held out depends only on the hash of the prompt and on
    ``seed``, not on the order of the rows.
    Raises DataError if there are fewer than two distinct prompts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must be between 0 and 1, got {fraction}")
    rows = load_rows(rows)
    held = _indices(rows, fraction, seed, columns)
    return rows.take(np.delete(np.arange(len(rows)), held)), rows.take(held)


def _indices(rows: Rows, fraction: float, seed: int, columns: Sequence[str] | None) -> Indices:
    """The indices of the held-out rows; for stored rows they are computed once."""
    if isinstance(rows.rows, StoredRows):
        question = f"held-out {fraction!r} {seed} {columns}"
        return rows.rows.remember(question, lambda: _held_out(rows, fraction, seed, columns))
    return _held_out(rows, fraction, seed, columns)


def _held_out(rows: Rows, fraction: float, seed: int, columns: Sequence[str] | None) -> Indices:
    order, sizes = _groups(rows, seed, columns)
    if len(sizes) < 2:
        what = "prompt" if columns is None else " and ".join(columns)
        raise DataError(
            f"{rows.name or 'the dataset'} has only one distinct {what} in {len(rows)} rows, "
            "so nothing can be held out without leaking: provide a separate evaluation file"
        )
    chosen = _choose(sizes.tolist(), max(1, round(fraction * len(rows))))
    return np.sort(order[np.repeat(chosen, sizes)])


def _groups(rows: Rows, seed: int, columns: Sequence[str] | None) -> tuple[Indices, Indices]:
    """The rows in the order of their prompts' hashes, and the size of each group with the same prompt."""
    digests = bytearray()
    for row in progress(rows, len(rows), "looking for identical prompts"):
        prompt = _prompt_of(row) if columns is None else canonical([row.get(name) for name in columns])
        digests += hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    words = np.frombuffer(digests, dtype=">u8").reshape(len(rows), 4)
    order = np.lexsort(words.T[::-1])
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return order, np.diff(np.flatnonzero(first), append=len(rows))


def _choose(sizes: list[int], wanted: int) -> npt.NDArray[np.bool_]:
    """The groups in turn that still fit into ``wanted`` rows; at least one."""
    chosen = np.zeros(len(sizes), dtype=bool)
    held = 0
    for group, size in enumerate(sizes):
        if held + size <= wanted:
            chosen[group], held = True, held + size
    if not held:
        chosen[np.argmin(sizes)] = True
    return chosen


def _prompt_of(row: Row) -> str:
    """The text before the first trained token, which must not be on both sides of the split."""
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


def _opening(messages: list[object]) -> list[object]:
    """The turns before the first assistant turn."""
    roles = [role_of(message) for message in messages]
    return messages[: roles.index("assistant")] if "assistant" in roles else messages
