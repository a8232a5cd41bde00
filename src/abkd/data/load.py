"""Rows from files, the hub or memory; the held-out split; fingerprints.

A row is a dict of columns. ``Rows`` keeps beside each row the number under which its owner knows it, so that an error
found after splitting still names the right line of the right file.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from abkd.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Row]):
    """Rows in order, each with its number at the source (1-based): ``unit`` says whether that is a line or a row."""

    rows: Sequence[Row]
    numbers: Sequence[int]
    name: str = ""
    unit: str = "row"

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at ``indices``, which keep their numbers."""
        chosen = list(indices)
        return Rows([self.rows[i] for i in chosen], [self.numbers[i] for i in chosen], self.name, self.unit)


def load_rows(source: str | Path | Iterable[Row], *, config: str | None = None, split: str = "train") -> Rows:
    """Rows of a file (``.jsonl .json .csv .parquet``), of a dataset on the hub or on disk, or of an iterable of dicts.

    ``config`` and ``split`` choose inside a hub dataset. Raises DataError: file not there, malformed (with the line
    number), unknown dataset, not rows, or no rows at all.
    """
    if isinstance(source, Rows):
        rows = source
    elif not isinstance(source, (str, Path)):
        rows = _number(_checked_rows(source, "the data set"))
    elif (reader := _READERS.get(Path(source).suffix.lower())) is not None:
        rows = _read_file(Path(source), reader)
    else:
        rows = _number(_load_dataset(str(source), config, split), str(source))
    if not len(rows):
        raise DataError(f"{rows.name or 'the data set'} has no rows: expected at least one")
    return rows


def _number(rows: Sequence[Row], name: str = "") -> Rows:
    return Rows(rows, range(1, len(rows) + 1), name)


def _checked_rows(rows: Iterable[Any], name: str) -> list[Row]:
    if isinstance(rows, Mapping):
        parts = ", ".join(map(str, rows))
        raise DataError(f"expected one table of rows, got a mapping of {parts}: choose one of its parts")
    checked = list(rows)
    for number, row in enumerate(checked, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{name}, row {number}: expected an object with columns, got {type(row).__name__}")
    return checked


def _read_file(path: Path, reader: Callable[[Path], Rows]) -> Rows:
    if not path.is_file():
        raise DataError(f"data file {path} does not exist: check the path (relative paths start at {Path.cwd()})")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _read_jsonl(path: Path) -> Rows:
    rows, numbers = [], []
    with path.open("rb") as handle:  # bytes, because only "\n" ends a line here; text mode also breaks at a lone "\r"
        for number, line in enumerate(handle, 1):
            if line.strip():
                rows.append(_parse_line(line, path, number))
                numbers.append(number)
    return Rows(rows, numbers, path.name, "line")


def _parse_line(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected an object with columns, got {type(row).__name__}")
    return row


def _read_json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; one object a line is called .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}){hint}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    return _number(_checked_rows(rows, str(path)), path.name)


def _read_csv(path: Path) -> Rows:
    rows, numbers = [], []
    with path.open(encoding="utf-8-sig", newline="") as handle:
        table = csv.DictReader(handle, strict=True)
        try:
            for row in table:
                if None in row or None in row.values():
                    wanted = len(table.fieldnames or ())
                    raise DataError(f"{path}, line {table.line_num}: expected {wanted} fields, as the header has")
                rows.append(row)
                numbers.append(table.line_num)
        except csv.Error as error:
            raise DataError(f"{path}, line {table.line_num}: not valid CSV ({error})") from error
    return Rows(rows, numbers, path.name, "line")


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
    return _number(rows, path.name)


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _load_dataset(name: str, config: str | None, split: str) -> list[Row]:
    way_out = f"A data file must end in one of {' '.join(_READERS)}"
    return _checked_rows(open_table(name, config, split, way_out), name)


def open_table(name: str, config: str | None, split: str, way_out: str) -> Any:
    """The ``datasets.Dataset`` of one split, from the hub or a folder; else DataError with the way out."""
    import datasets

    try:
        if is_saved(Path(name)):
            found = datasets.load_from_disk(name)
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError) as error:
        which = f"{name!r} (config {config}, split {split!r})"
        raise DataError(f"cannot load dataset {which}: {error}. {way_out}") from error


def is_saved(folder: Path) -> bool:
    """Whether the datasets library saved a dataset, or several splits, into this folder."""
    return any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))


def fingerprint(rows: Iterable[Row]) -> str:
    """16 hexadecimal digits that change when any row, or the order of the rows, changes; equal on every machine."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


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
    messages = row.get("messages")
    if row.get("prompt") is not None:
        prompt = row["prompt"]
    elif isinstance(messages, list):
        prompt = _opening(messages)
    else:
        prompt = row.get("text", row)
    return _canonical(prompt.strip() if isinstance(prompt, str) else prompt)


def _opening(messages: list[Any]) -> list[Any]:
    """The turns before the first assistant turn."""
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    return messages[: roles.index("assistant")] if "assistant" in roles else messages
