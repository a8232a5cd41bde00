"""Turn rows into a dataset of tokenised examples, with an account of truncated and dropped rows."""

from __future__ import annotations

import copy
import itertools
import logging
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from abkd.data.account import Account
from abkd.data.bad_rows import BadRowError, OnBadRow
from abkd.data.columns import Column, Groups, Joined, Lists, Repeated, Segments, fingerprint_of
from abkd.data.completion import padding_example
from abkd.data.formats import recognise
from abkd.data.load import load_rows
from abkd.data.prepared import ExampleDataset
from abkd.data.remarks import log_remarks
from abkd.data.rows import Row, Rows
from abkd.data.steps import Steps
from abkd.data.stream import RowStream, StreamedDataset
from abkd.data.template import check_template
from abkd.data.tokenize import Example, encode_text
from abkd.data.tokens import RowSteps, Tokens, tokens_of
from abkd.data.vocabulary import check_deterministic
from abkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")

_OF_EVERY_ROW = ("input_ids", "trained")


class TokenizedDataset(ExampleDataset):
    """Examples in order; a torch map-style dataset. Not every example needs every column.

    ``lengths``: number of tokens of each example. ``account``: counts of the rows, two of which are also attributes:
    ``dropped`` (rows left out, by reason) and ``truncated`` (rows cut to max_length). ``name``: for messages.
    """

    _single: frozenset[str] = frozenset()  # columns of one value for each example

    def __init__(self, examples: Sequence[Example], *, name: str = "train", account: Account | None = None) -> None:
        if not examples:
            raise DataError(f"{name} has no examples: expected at least one")
        rows = cast("Sequence[Mapping[str, Any]]", examples)
        names = dict.fromkeys(itertools.chain(_OF_EVERY_ROW, *rows))
        self._single = frozenset(each for each in names if any(isinstance(row.get(each), int) for row in rows))
        columns = {name: Lists.of([self._listed(row, name) for row in rows]) for name in names}
        self._fill(columns, name, account or Account(rows=len(examples)))

    @classmethod
    def of(cls, tokens: Tokens, name: str) -> Self:
        """The dataset of rows that were tokenised."""
        made = cls.__new__(cls)
        made._fill(tokens.columns, name, tokens.tally.account(), tokens.fingerprint)
        return made

    def _fill(self, columns: Mapping[str, Column], name: str, account: Account, fingerprint: str | None = None) -> None:
        self._columns, self._fingerprint = dict(columns), fingerprint
        self.name, self.account = name, account
        self.dropped, self.truncated = dict(account.dropped), account.truncated
        self.lengths = self._columns["input_ids"].lengths.tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        found = {name: column[index] for name, column in self._columns.items()}
        given = {name: values for name, values in found.items() if values or name in _OF_EVERY_ROW}
        return cast(Example, {name: values[0] if name in self._single else values for name, values in given.items()})

    def _listed(self, row: Mapping[str, Any], name: str) -> list[int]:
        if name in _OF_EVERY_ROW and name not in row:
            raise DataError(f"every example needs input_ids and trained, got one with {', '.join(row) or 'nothing'}")
        return [] if name not in row else [row[name]] if name in self._single else row[name]

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def columns(self) -> frozenset[str]:
        """The columns that examples have."""
        return frozenset(self._columns)

    @property
    def trained_tokens(self) -> int:
        """Number of targets in all examples together."""
        return sum(int(piece.sum()) for piece in self._columns["trained"].pieces())

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all token ids and masks in order; equal on every machine."""
        return self._fingerprint or fingerprint_of(self._columns)

    def padding_example(self) -> Example:
        """The first token of the first row, which nothing predicts."""
        return padding_example(self[0])

    def with_pretraining(self, chunks: Sequence[Sequence[int]]) -> TokenizedDataset:
        """The same examples, each with a chunk of plain text (in turn) for the language-modelling term."""
        if not chunks:
            raise DataError("expected at least one chunk of pre-training text, got none")
        return self._of({**self._columns, "pretrain_ids": Repeated(chunks, len(self))})

    def joined(self, groups: Sequence[Sequence[int]]) -> TokenizedDataset:
        """One example per group of indices; its ``segments`` give the position in the group that a token belongs to."""
        which = Groups(groups)
        joined: dict[str, Column] = {name: Joined(column, which) for name, column in self._columns.items()}
        return self._of({**joined, "segments": Segments(self._columns["input_ids"].lengths, which)})

    def _of(self, columns: Mapping[str, Column]) -> TokenizedDataset:
        made = copy.copy(self)
        made._columns, made._fingerprint = dict(columns), None
        made.lengths = made._columns["input_ids"].lengths.tolist()
        return made


def prepare_dataset(
    rows: str | Path | Iterable[Row] | TokenizedDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    apply_chat_template: bool | None = None,
    on_bad_row: OnBadRow = "error",
    name: str = "train",
    completions: bool = True,
    context: str | None = None,
    privileged: bool = False,
) -> TokenizedDataset:
    """Check and tokenise rows (anything ``load_rows`` accepts; a TokenizedDataset is returned unchanged).

    Args:
        max_length: maximum number of tokens of a row; a prompt without a completion leaves room for one.
        apply_chat_template: whether to render plain prompts and completions as a user turn and an assistant turn.
            None: if the tokenizer has a chat template, except rows whose prompt already contains tokens of it. Lists
            of messages are always rendered, text never.
        on_bad_row: "drop" leaves out, and counts, the rows that "error" rejects.
        name: for messages.
        completions: whether the data's own completions are trained on; if not, prompts are enough.
        context: with ``privileged``, the text that the teacher reads before every prompt; None uses the column
            ``context``.
        privileged: give every row a separate teacher side.

    Raises:
        DataError: no rows, unknown columns, a conversation without a chat template, no context, and, unless
            ``on_bad_row="drop"``, rows that cannot be used, with their numbers and reasons.
        ConfigError: values out of range, a chat template that is broken, or missing although it is to be applied, a
            tokenizer that encodes at random.
    """
    if isinstance(rows, TokenizedDataset):
        return rows
    _check_options(tokenizer, max_length, on_bad_row)
    loaded = load_rows(rows)
    steps = Steps(
        recognise(loaded.columns, completions),
        tokenizer,
        max_length,
        apply_chat_template,
        context,
        privileged=privileged,
    )
    _check_steps(steps, loaded, loaded.columns, loaded.name or name)
    return TokenizedDataset.of(tokenize_rows(loaded, steps, name, on_bad_row), name)


def tokenize_rows(rows: Rows, steps: RowSteps, name: str, on_bad_row: OnBadRow) -> Tokens:
    """The tokens of all rows; remarks about them are logged.

    Raises:
        DataError: no row can be used, or, unless ``on_bad_row="drop"``, some cannot.
    """
    where = rows.name or name
    tokens = tokens_of(rows, steps, name, lambda tally: tally.check(len(rows), where, on_bad_row))
    log_remarks(tokens.tally.remarks, name, len(rows))
    return tokens


def prepare_stream(
    stream: RowStream,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    seed: int,
    max_length: int = 1024,
    apply_chat_template: bool | None = None,
    on_bad_row: OnBadRow = "error",
    name: str = "train",
    completions: bool = True,
    context: str | None = None,
    privileged: bool = False,
) -> StreamedDataset:
    """The same for rows that are read as they are needed (``stream_rows``): only the first 1 000 are checked up front.

    Args:
        length: number of examples that the run trains on.
        seed: for the order.

    Raises:
        DataError, ConfigError: as ``prepare_dataset``, for the first rows.
    """
    _check_options(tokenizer, max_length, on_bad_row)
    first = stream.first()
    if not first:
        raise DataError(f"{stream.name} has no rows: expected at least one")
    rows = [row for _, row in first]
    columns = set(itertools.chain.from_iterable(rows))
    steps = Steps(
        recognise(columns, completions), tokenizer, max_length, apply_chat_template, context, privileged=privileged
    )
    _check_steps(steps, rows, columns, stream.name)
    dataset = StreamedDataset(stream, first, steps, length=length, seed=seed, on_bad_row=on_bad_row, name=name)
    dataset.tally.check(len(first), stream.name, on_bad_row)
    logger.info("abkd: rows are read as they are needed; only the first %s are checked up front", f"{len(first):,}")
    log_remarks(dataset.tally.remarks, name, len(first))
    return dataset


def _check_options(tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_row: OnBadRow) -> None:
    check_deterministic(tokenizer, "the tokenizer")
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(f"on_bad_row must be 'error' or 'drop', got {on_bad_row!r}")
    if max_length < 2:
        raise ConfigError(f"max_length must be at least 2 (a prompt token and a completion token), got {max_length}")


def _check_steps(steps: Steps, rows: Iterable[Row], columns: Collection[str], name: str) -> None:
    if steps.privileged and steps.context is None and "context" not in columns:
        raise DataError(
            f"{name} has no column 'context', which a privileged teacher reads: add it (it may be empty in some rows), "
            "or set one text for all rows, as in Privileged(StudentSamples(), context='...')"
        )
    if steps.renders(rows):
        check_template(steps.tokenizer)


def pretraining_chunks(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Sequence[int]]:
    """Concatenate documents (each BOS … EOS) and cut them into chunks of ``length`` tokens; the remainder is dropped.

    If there is less than one chunk of text, that text is the only chunk. Raises DataError if there is no text,
    ConfigError for a tokenizer that encodes at random.
    """
    check_deterministic(tokenizer, "the tokenizer")
    stream = array("i")  # 4 bytes per token
    for number, text in enumerate(texts, 1):
        try:
            stream.extend(encode_text(text, tokenizer) if text.strip() else ())
        except BadRowError as error:
            raise DataError(f"pre-training document {number}: {error}") from error
    if len(stream) < 2:
        raise DataError("the pre-training text is empty: expected at least one document")
    chunks: list[Sequence[int]] = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    return chunks or [stream]
