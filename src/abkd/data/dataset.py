"""Rows in, tokenised examples out, with an account of what was cut and what was left out."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch.utils.data import Dataset

from abkd.data.formats import BadRowError, Chat, Parser, PlainPair, PlainText, Record, recognise
from abkd.data.load import Row, Rows, load_rows
from abkd.data.tokenize import Example, encode_text, tokenize
from abkd.errors import ConfigError, DataError

OnBadRow = Literal["error", "drop"]

_PROGRESS_FROM = 5_000  # rows; below, tokenising takes a second or two
_NAMED_ROWS = 10  # bad rows that an error message spells out


class _Ragged:
    """Lists of different lengths in one flat array: 4 bytes a token where Python integers take 36."""

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        flags = bool(rows) and bool(rows[0]) and isinstance(rows[0][0], bool)
        self.lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        self._ends = np.cumsum(self.lengths)
        self.flat = np.fromiter(
            itertools.chain.from_iterable(rows), dtype=np.bool_ if flags else np.int32, count=int(self.lengths.sum())
        )

    def __getitem__(self, index: int) -> list[Any]:
        end = self._ends[index]
        return self.flat[end - self.lengths[index] : end].tolist()


class TokenizedDataset(Dataset[Example]):
    """Examples in order; a torch map-style dataset.

    ``lengths``: tokens of each example. ``dropped``: rows left out, by reason. ``truncated``: rows cut to max_length.
    ``name``: for messages.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        name: str = "train",
        dropped: Mapping[str, int] | None = None,
        truncated: int = 0,
    ) -> None:
        if not examples:
            raise DataError(f"{name} has no examples: expected at least one")
        columns = cast("Sequence[Mapping[str, list[Any]]]", examples)
        self._columns = {key: _Ragged([row[key] for row in columns]) for key in columns[0]}
        self.name, self.dropped, self.truncated = name, dict(dropped or {}), truncated
        self.lengths: list[int] = self._columns["input_ids"].lengths.tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        return cast(Example, {key: column[index] for key, column in self._columns.items()})

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def trained_tokens(self) -> int:
        """Number of targets in all examples together."""
        return int(self._columns["trained"].flat.sum())

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all token ids and masks in order; equal on every machine."""
        digest = hashlib.sha256()
        for key, column in sorted(self._columns.items()):
            digest.update(key.encode() + column.lengths.tobytes() + column.flat.tobytes())
        return digest.hexdigest()[:16]

    def with_pretraining(self, chunks: Sequence[list[int]]) -> TokenizedDataset:
        """The same examples, each with a chunk of plain text (in turn) for the language-modelling term."""
        if not chunks:
            raise DataError("expected at least one chunk of pre-training text, got none")
        examples = [Example(**{**row, "pretrain_ids": chunks[i % len(chunks)]}) for i, row in enumerate(self)]
        return TokenizedDataset(examples, name=self.name, dropped=self.dropped, truncated=self.truncated)


def prepare_dataset(
    rows: str | Path | Iterable[Row] | TokenizedDataset,
    tokenizer: Any,
    *,
    max_length: int = 1024,
    apply_chat_template: bool = False,
    on_bad_row: OnBadRow = "error",
    name: str = "train",
) -> TokenizedDataset:
    """Check and tokenise rows (anything ``load_rows`` takes; a TokenizedDataset is returned as it is).

    ``apply_chat_template`` turns plain prompt and completion into a user and an assistant turn; lists of messages are
    always rendered. Raises DataError: no rows, unknown columns, no chat template, and, unless ``on_bad_row="drop"``,
    rows that cannot be used, with their numbers and reasons.
    """
    if isinstance(rows, TokenizedDataset):
        return rows
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(f"on_bad_row must be 'error' or 'drop', got {on_bad_row!r}")
    if max_length < 2:
        raise ConfigError(f"max_length must be at least 2 (a prompt token and a completion token), got {max_length}")
    loaded = load_rows(rows)
    parser = recognise(set(itertools.chain.from_iterable(loaded)))
    examples, bad = _tokenize_rows(loaded, parser, tokenizer, max_length, apply_chat_template, name)
    if bad and on_bad_row == "error":
        raise DataError(_describe(bad, loaded, name) + ". Repair them, or set on_bad_row: drop to train without them")
    dropped = Counter(error.reason for _, error in bad)
    if not examples:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.most_common())
        raise DataError(f"{loaded.name or name}: all {len(loaded)} rows were dropped ({reasons})")
    truncated = sum(cut for _, cut in examples)
    return TokenizedDataset([example for example, _ in examples], name=name, dropped=dropped, truncated=truncated)


def _tokenize_rows(
    rows: Rows, parser: Parser, tokenizer: Any, max_length: int, chat: bool, name: str
) -> tuple[list[tuple[Example, bool]], list[tuple[int, BadRowError]]]:
    """``(example, was it cut)`` for each good row; ``(row number, why)`` for the others."""
    good: list[tuple[Example, bool]] = []
    bad: list[tuple[int, BadRowError]] = []
    for number, row in _progress(zip(rows.numbers, rows, strict=True), len(rows), name):
        try:
            record = _as_chat(parser(row)) if chat else parser(row)
            _check_template(record, tokenizer)
            good.append(tokenize(record, tokenizer, max_length))
        except BadRowError as error:
            bad.append((number, error))
    return good, bad


def _as_chat(record: Record) -> Record:
    if isinstance(record, PlainText):
        raise DataError("apply_chat_template needs prompt and completion, and the data has text: set it to false")
    return record.as_chat() if isinstance(record, PlainPair) else record


def _check_template(record: Record, tokenizer: Any) -> None:
    if isinstance(record, Chat) and not tokenizer.chat_template:
        raise DataError(
            "the data is a conversation and the tokenizer has no chat template: "
            "set tokenizer.chat_template, or give prompt and completion as plain strings"
        )


def _progress(rows: Iterable[tuple[int, Row]], total: int, name: str) -> Iterable[tuple[int, Row]]:
    if total < _PROGRESS_FROM or not sys.stderr.isatty():
        return rows
    from rich.console import Console
    from rich.progress import track

    return track(rows, f"tokenising {name}", total=total, console=Console(stderr=True), transient=True)


def _describe(bad: Sequence[tuple[int, BadRowError]], rows: Rows, name: str) -> str:
    named = "; ".join(f"{rows.unit} {number}: {error}" for number, error in bad[:_NAMED_ROWS])
    more = f"; and {len(bad) - _NAMED_ROWS} more" if len(bad) > _NAMED_ROWS else ""
    return f"{rows.name or name}: {len(bad)} of {len(rows)} rows cannot be used: {named}{more}"


def pretraining_chunks(texts: Iterable[str], tokenizer: Any, length: int) -> list[list[int]]:
    """Documents one after the other (each BOS … EOS), cut into chunks of ``length`` tokens; the rest is left out.

    Where there is less than one chunk of text, that text is the only chunk. Raises DataError where there is no text.
    """
    stream: list[int] = []
    for number, text in enumerate(texts, 1):
        try:
            stream += encode_text(text, tokenizer) if text.strip() else []
        except BadRowError as error:
            raise DataError(f"pre-training document {number}: {error}") from error
    if len(stream) < 2:
        raise DataError("the pre-training text is empty: expected at least one document")
    chunks = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    return chunks or [stream]
