"""Tokenise rows: a few in this process, many in several processes, with the result cached."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

import pyarrow
from torch.utils.data import DataLoader, Dataset

from abkd.data.columns import Column, Lists, fingerprint_of, mapped
from abkd.data.load import FEW
from abkd.data.progress import progress
from abkd.data.rows import Row, Rows
from abkd.data.stored import StoredRows, hash_of, keep, key, write_batches
from abkd.data.tally import Tally
from abkd.data.tokenize import Example, TokenizedRow
from abkd.data.vocabulary import PROBES
from abkd.errors import AbkdError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 1_000  # rows per piece of work
_PROCESSES = 16  # at most; with more, the process that writes is the bottleneck


class RowSteps(Protocol):
    """Turns a row into its tokenised examples; a frozen dataclass of plain values and tokenizers.

    Calling it raises BadRowError for a row that cannot be used. ``columns``: the names of all lists that an example may
    have, ``input_ids`` first; those that end in "trained" hold booleans, all others integers.
    """

    columns: ClassVar[tuple[str, ...]]

    def __call__(self, row: Row) -> TokenizedRow: ...


class Tokens(NamedTuple):
    """The columns of all examples, the counts of their rows, and the fingerprint if it is known."""

    columns: dict[str, Column]
    tally: Tally
    fingerprint: str | None = None


class _Piece(NamedTuple):
    tokens: pyarrow.RecordBatch
    tally: Tally
    error: AbkdError | None


def tokens_of(rows: Rows, steps: RowSteps, name: str, check: Callable[[Tally], None]) -> Tokens:
    """Apply ``steps`` to all rows; for stored rows, the result is cached.

    ``check`` raises if the tally is not acceptable; nothing is cached then.
    """
    if not isinstance(rows.rows, StoredRows):
        tally, batches = Tally(), list[pyarrow.RecordBatch]()
        batches += _counted(_pieces(rows, steps, name), tally)
        check(tally)
        return Tokens(_columns(steps, lambda column: Lists([batch.column(column) for batch in batches])), tally)

    def build(file: Path) -> dict[str, object]:
        tally = Tally()
        write_batches(file, _schema(steps), _counted(_pieces(rows, steps, name), tally))
        check(tally)
        return {
            "tally": tally.plain(),
            "fingerprint": fingerprint_of(_columns(steps, lambda column: mapped(file, column))),
        }

    kept = keep(f"tokens-{key(rows.rows.key, _described(steps))}", build, verify=True)
    tally = Tally.of_plain(kept.about["tally"])
    check(tally)
    return Tokens(_columns(steps, lambda column: mapped(kept.file, column)), tally, kept.about["fingerprint"])


def _schema(steps: RowSteps) -> pyarrow.Schema:
    kinds = {name: pyarrow.bool_() if name.endswith("trained") else pyarrow.int32() for name in steps.columns}
    return pyarrow.schema({name: pyarrow.list_(kind) for name, kind in kinds.items()})


def _columns(steps: RowSteps, read: Callable[[str], Column]) -> dict[str, Column]:
    """The columns that any example has."""
    columns = {name: read(name) for name in steps.columns}
    return {name: column for name, column in columns.items() if column.lengths.any()}


def _counted(pieces: Iterable[_Piece], tally: Tally) -> Iterator[pyarrow.RecordBatch]:
    for piece in pieces:
        if piece.error is not None:
            raise piece.error
        tally.add(piece.tally)
        yield piece.tokens


class _Pieces(Dataset[_Piece]):
    """The work for several processes, in pieces of ``_AT_ONCE`` rows."""

    def __init__(self, rows: Rows, steps: RowSteps) -> None:
        self.rows, self.steps = rows, steps

    def __len__(self) -> int:
        return (len(self.rows) + _AT_ONCE - 1) // _AT_ONCE

    def __getitem__(self, index: int) -> _Piece:
        tally, error = Tally(), None
        places = range(len(self.rows))[index * _AT_ONCE : (index + 1) * _AT_ONCE]
        examples: list[Example] = []
        try:
            for place in places:
                where = self.rows.place(int(self.rows.numbers[place]))
                examples += tally.examples_of(self.rows[place], where, self.steps)
        except AbkdError as raised:  # returned, since a worker would add its traceback to the message
            error = raised
        return _Piece(_batch(examples, _schema(self.steps)), tally, error)


def _batch(examples: Sequence[Example], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    lists = ([example.get(field.name, ()) for example in examples] for field in schema)
    arrays = [pyarrow.array(each, type=field.type) for each, field in zip(lists, schema, strict=True)]
    return pyarrow.record_batch(arrays, schema=schema)


def _pieces(rows: Rows, steps: RowSteps, name: str) -> Iterator[_Piece]:
    pieces = _Pieces(rows, steps)
    workers = min(_processors(), _PROCESSES, len(pieces)) if len(rows) > FEW else 1
    here = (pieces[index] for index in range(len(pieces)))
    done = here if workers == 1 else _by_workers(pieces, workers, name)
    yield from progress(done, len(pieces), f"tokenising {name}", each=_AT_ONCE)


def _processors() -> int:
    """CPUs that this process may use, or all of them if the system does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_workers(pieces: _Pieces, workers: int, name: str) -> Iterator[_Piece]:
    with _single_threaded():
        try:
            yield from DataLoader(pieces, batch_size=None, num_workers=workers, collate_fn=cast(Any, _same))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(f"{name}: a tokenisation worker died ({error}): check the available memory") from error


def _same(piece: _Piece) -> _Piece:
    return piece


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Disable the threads of tokenizers: they do not survive a fork, and there are enough processes."""
    known = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if known is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = known


def _described(steps: RowSteps) -> list[object]:
    """Everything that the tokens of a row depend on, besides the row and the code of this package."""
    fields = {field.name: getattr(steps, field.name) for field in dataclasses.fields(cast(Any, steps))}
    tokenizers = {name: _identity(value) for name, value in fields.items() if hasattr(value, "get_vocab")}
    values = {name: getattr(value, "__qualname__", value) for name, value in fields.items() if name not in tokenizers}
    return [values, tokenizers, hash_of(Path(inspect.getfile(type(steps))))]


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of a tokenizer: its serialised state, and its encoding of texts on which tokenizers differ."""
    import tokenizers
    import transformers

    digest = hashlib.blake2b(digest_size=16)
    core = getattr(tokenizer, "backend_tokenizer", None)
    facts = [
        tokenizers.__version__,
        transformers.__version__,
        type(tokenizer).__qualname__,
        core.to_str() if core is not None else repr(tokenizer.added_tokens_decoder),
        sorted(tokenizer.get_vocab().items()),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
        [tokenizer(probe, add_special_tokens=special)["input_ids"] for probe in PROBES for special in (True, False)],
    ]
    for fact in facts:
        digest.update(json.dumps(fact, sort_keys=True).encode())
    return digest.hexdigest()
