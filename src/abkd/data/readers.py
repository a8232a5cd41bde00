"""Read the rows of a file one by one; only the current row and a read-ahead buffer are in memory."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING, AnyStr

from abkd.data.files import LONGEST, DataFile
from abkd.data.messages import row_of_table
from abkd.data.rows import Row
from abkd.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Numbered = tuple[int, Row]
"""A row and its number in the file, counted from 1: its line, or its index."""

_DEEPEST = 100  # levels of nested lists and objects; templates and JSON writers recurse
_AHEAD = 1 << 20  # characters
_BATCH = 256  # rows of a parquet file that are decoded at once
_CUT = 12  # characters; an error closer to the end of the buffer may be due to that end: no JSON literal is longer


def unit_of(file: DataFile) -> str:
    """The unit of the row numbers, "line" or "row"."""
    return "line" if file.kind in (".jsonl", ".csv") else "row"


def read_rows(file: DataFile) -> Iterator[Numbered]:
    """The rows of a file. Raises DataError, with the line, on reaching a row that is malformed."""
    return _READERS[file.kind](file)


def _read_jsonl(file: DataFile) -> Iterator[Numbered]:
    with file.open() as handle:
        for number, line in enumerate(_lines(handle, file), 1):  # in bytes, where only "\n" ends a line
            if line.strip():
                yield number, _parse_line(line, f"{file.path}, line {number}")


def _lines(handle: IO[AnyStr], file: DataFile) -> Iterator[AnyStr]:
    number = 0
    while line := handle.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise DataError(f"{file.path}, line {number}: expected one row per line, got over {LONGEST >> 20} MB")
        yield line


def _parse_line(line: bytes, where: str) -> Row:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason})") from error
    try:
        row = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_why(error)}") from error
    return _checked(row, where, deep=text.count("{") + text.count("[") > _DEEPEST)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return made


class _DuplicateKeyError(ValueError):
    def __init__(self, name: str) -> None:
        super().__init__(f"duplicate key {name[:80]!r}: keep one")


_decoder = json.JSONDecoder(object_pairs_hook=_unique)


def _why(error: Exception) -> str:
    """The reason why Python's parser rejects valid JSON."""
    if isinstance(error, RecursionError):
        return f"nested too deeply: expected at most {_DEEPEST} levels"
    return str(error) if isinstance(error, _DuplicateKeyError) else f"a number that is too large ({error})"


def _checked(row: object, where: str, *, deep: bool = True) -> Row:
    """The row, if it is an object; its nesting is checked only if it may be ``deep``."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with columns, got {type(row).__name__}")
    if deep and _depth(row) > _DEEPEST:
        raise DataError(f"{where}: {_why(RecursionError())}")
    return row


def _depth(row: dict[str, object]) -> int:
    level: list[dict[str, object] | list[object]] = [row]
    depth = 0
    while level and depth <= _DEEPEST:
        inner = itertools.chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)
        level, depth = [each for each in inner if isinstance(each, dict | list)], depth + 1
    return depth


def _read_json(file: DataFile) -> Iterator[Numbered]:
    with file.open_text() as handle:
        text = _Text(handle, file)
        if text.next_character() != "[":
            raise _no_list(text, file)
        text.skip()
        for number in itertools.count(1):
            if text.next_character() == "]" and number == 1:
                break
            yield number, _checked(text.value(), f"{file.path}, row {number}")
            if text.next_character() != ",":
                break
            text.skip()
        text.expect("]")
        if text.next_character():
            raise text.error("Extra data")


def _no_list(text: _Text, file: DataFile) -> DataError:
    if not text.next_character():
        return text.error("it is empty")
    found = text.value()
    if text.next_character():
        return text.error("Extra data", "; for one object per line, use the suffix .jsonl")
    return DataError(f"{file.path}: expected a list of objects, got {type(found).__name__}")


class _Text:
    """JSON text that is read incrementally."""

    def __init__(self, handle: IO[str], file: DataFile) -> None:
        self._handle, self._file = handle, file
        self._read, self._at, self._line = "", 0, 1  # the buffer, the position in it, the line at its start

    def next_character(self) -> str:
        """The next character that is not whitespace, without consuming it; "" at the end."""
        while True:
            while self._at < len(self._read) and self._read[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._read):
                return self._read[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Consume one character."""
        self._at += 1

    def expect(self, character: str) -> None:
        """Consume this character. Raises DataError if the next one is another."""
        if self.next_character() != character:
            raise self.error("Expecting ',' delimiter")
        self.skip()

    def value(self) -> object:
        """The next value, of any type. Raises DataError if there is none."""
        self.next_character()
        while True:
            try:
                found, self._at = _decoder.raw_decode(self._read, self._at)
                return found
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._read) - _CUT or error.msg.startswith("Unterminated")
                if not cut or not self._more():
                    self._at = error.pos
                    raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self.error(_why(error)) from error

    def error(self, why: str, hint: str = "") -> DataError:
        """The error for the current position."""
        line = self._line + self._read.count("\n", 0, self._at)
        return DataError(f"{self._file.path}, line {line}: not valid JSON ({why}){hint}")

    def _more(self) -> bool:
        self._line += self._read.count("\n", 0, self._at)
        rest = self._read[self._at :]
        if len(rest) > LONGEST:
            where = f"{self._file.path}, line {self._line}"
            raise DataError(f"{where}: expected rows of at most {LONGEST >> 20} MB, got a longer one")
        more = self._handle.read(max(_AHEAD, len(rest)))
        self._read, self._at = rest + more, 0
        return bool(more)


def _read_csv(file: DataFile) -> Iterator[Numbered]:
    csv.field_size_limit(LONGEST)  # the default, 131 072 characters, is less than a long document
    with file.open_text() as handle:
        table = csv.DictReader(_lines(handle, file), strict=True)
        try:
            columns = list(table.fieldnames or ())
            _check_columns(columns, file)
            for row in table:
                if None in row or None in row.values():
                    raise DataError(
                        f"{file.path}, line {table.line_num}: expected {len(columns)} fields, as in the header"
                    )
                yield table.line_num, row
        except csv.Error as error:
            raise DataError(f"{file.path}, line {table.line_num}: not valid CSV ({error})") from error


def _read_parquet(file: DataFile) -> Iterator[Numbered]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with file.open() as handle, pyarrow.parquet.ParquetFile(handle) as table:
            _check_columns(table.schema_arrow.names, file)
            for batch in table.iter_batches(_BATCH):
                for row in _rows_of(batch):
                    number += 1
                    yield number, _checked(row_of_table(row), f"{file.path}, row {number}")
    # pyarrow raises all of these: a table that claims more than it has, text that is not UTF-8, dates out of range
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file.path} is not a readable parquet file (after row {number}): {error}") from error


def _rows_of(batch: pyarrow.RecordBatch) -> list[dict[str, object]]:
    """The rows of a batch; times that Python cannot represent become integers."""
    import pyarrow

    try:
        return batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        columns = [_representable(column) for column in batch.columns]
        return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()


def _representable(column: pyarrow.Array) -> pyarrow.Array:
    """The column, with integers for times that Python cannot represent (after the year 9999, in an unknown zone).

    A column that fails for another reason is returned unchanged, and fails again.
    """
    import pyarrow

    try:
        column.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        with suppress(pyarrow.ArrowException):
            return column.cast(_with_numbers(column.type))
    return column


def _with_numbers(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type with integers in place of times, at any depth."""
    import pyarrow

    types = pyarrow.types
    if types.is_temporal(kind):
        return pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_with_numbers(field.type)) for field in kind.fields])
    if types.is_map(kind):
        return pyarrow.map_(_with_numbers(kind.key_type), _with_numbers(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_with_numbers(kind.value_type)), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        make = pyarrow.large_list if types.is_large_list(kind) else pyarrow.list_
        return make(kind.value_field.with_type(_with_numbers(kind.value_type)))
    return _with_numbers(kind.value_type) if types.is_dictionary(kind) else kind


def _check_columns(columns: list[str], file: DataFile) -> None:
    if duplicates := {name for name in columns if columns.count(name) > 1}:
        raise DataError(f"{file.path}: duplicate column {min(duplicates)!r}: keep one")


_READERS: Mapping[str, Callable[[DataFile], Iterator[Numbered]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
