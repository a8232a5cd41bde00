"""Large datasets in the cache directory: their rows and tokens, memory-mapped.

The cache holds copies of private data, so only their owner may read them; ``abkd clean`` deletes them. A folder is
either complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.ipc

from abkd.data.columns import read_arrow
from abkd.data.rows import Row, Table
from abkd.paths import cache_directory, readable
from abkd.storage import disk_errors, lock_file, read_checksummed, write_checksummed

logger = logging.getLogger("abkd")

_MANIFEST = "manifest.json"
_ARROW = "data.arrow"
_BLOCK = 1 << 23  # bytes that are read at once, or of rows that are written at once
_BATCH = 10_000  # rows that are written at once
_SCHEMA = pyarrow.schema({"row": pyarrow.string(), "number": pyarrow.int64(), "columns": pyarrow.int32()})


def data_cache() -> Path:
    """The folder with all cached datasets."""
    return cache_directory() / "data"


@dataclass(frozen=True)
class Kept:
    """A folder of the cache, and the content of its manifest."""

    folder: Path
    about: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """Its Arrow file."""
        return self.folder / _ARROW


def keep(name: str, build: Callable[[Path], Mapping[str, object]], *, verify: bool = False) -> Kept:
    """The folder ``name`` of the cache; if absent, ``build`` writes its Arrow file and returns its manifest entries.

    Several processes may call this at once: one builds, the others wait. ``verify`` reads the file and checks its hash.
    Raises StorageError on a disk error.
    """
    place = data_cache()
    found = _complete(place / name, verify)
    if found is not None:
        return found
    way_out = "Free some space, or set ABKD_CACHE to a folder on another disk"
    with disk_errors(f"the copy of the data in {place}", way_out):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(place / f".{name}.lock"):
            return _complete(place / name, verify) or _built(place / name, build)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.touch(mode=0o600)
    with file.open("w") as handle:
        if not lock_file(handle):
            logger.info("abkd: another process is preparing the same data; waiting for it")
            lock_file(handle, wait=True)
        yield


def _built(folder: Path, build: Callable[[Path], Mapping[str, object]]) -> Kept:
    for left in (folder, *folder.parent.glob(f".{folder.name}.*.draft")):  # damaged, or left by a process that died
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))  # 0700
    try:
        about = build(draft / _ARROW)
        size = (draft / _ARROW).stat().st_size
        write_checksummed(draft / _MANIFEST, {**about, "size": size, "hash": hash_of(draft / _ARROW)})
        for file in draft.iterdir():
            file.chmod(0o600)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    logger.info("abkd: a copy of the data, %s, is kept in %s (abkd clean deletes it)", readable(size), folder)
    return Kept(folder, about)


def _complete(folder: Path, verify: bool) -> Kept | None:
    about, file = read_checksummed(folder / _MANIFEST), folder / _ARROW
    if about is None or not file.is_file() or file.stat().st_size != about.get("size"):
        return None
    if verify and hash_of(file) != about["hash"]:
        logger.warning("abkd: %s is damaged and will be rebuilt", folder)
        return None
    os.utime(folder)  # marks it as recently used
    return Kept(folder, about)


def hash_of(file: Path) -> str:
    """32 hexadecimal digits of the file's content (read, since pages that are mapped count as memory)."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb", buffering=0) as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@cache
def code() -> str:
    """Version of the code that writes the cache: a hash of this package's source, and Arrow's version."""
    digest = hashlib.blake2b(pyarrow.__version__.encode(), digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def key(*facts: object) -> str:
    """24 hexadecimal digits of plain values and of the code."""
    return hashlib.blake2b(json.dumps([code(), *facts]).encode(), digest_size=12).hexdigest()


class StoredRows(Table):
    """Rows in an Arrow file, each as a JSON string: the columns of a table would add keys that a row does not have.

    ``chosen``: int64, the indices of the selected rows; None selects all.
    """

    def __init__(self, folder: Path, chosen: npt.NDArray[np.int64] | None = None) -> None:
        self.folder, self._chosen = folder, chosen
        self._table = read_arrow(folder / _ARROW)

    def __len__(self) -> int:
        return self._table.num_rows if self._chosen is None else len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        return json.loads(self._table["row"][place if self._chosen is None else int(self._chosen[place])].as_py())

    def __reduce__(self) -> tuple[object, ...]:  # workers get the location, not the data
        return StoredRows, (self.folder, self._chosen)

    def take(self, indices: npt.NDArray[np.int64]) -> StoredRows:
        """See :class:`abkd.data.rows.Table`."""
        return StoredRows(self.folder, indices if self._chosen is None else self._chosen[indices])

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The number of each row in its source."""
        return self._of("number")

    @property
    def columns(self) -> set[str]:
        """The columns that any of these rows has."""
        shapes = self._about["shapes"]
        return {name for shape in np.unique(self._of("columns")).tolist() for name in shapes[shape]}

    @property
    def key(self) -> str:
        """Identifier of these rows, independent of where they come from."""
        chosen = b"" if self._chosen is None else self._chosen.tobytes()
        return f"{self.folder.name} {hashlib.blake2b(chosen, digest_size=16).hexdigest()}"

    def remember(self, question: str, compute: Callable[[], npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        """Indices that take long to compute; they are computed once and stored next to the rows."""
        if self._chosen is not None:
            return compute()
        file = self.folder / f"{key(question)}.json"
        known = read_checksummed(file)
        if known is None:
            known = {"question": question, "indices": compute().tolist()}
            with disk_errors(f"the copy of the data in {self.folder}", "Free some space"):
                write_checksummed(file, known)
                file.chmod(0o600)
        return np.array(known["indices"], dtype=np.int64)

    @cached_property
    def _about(self) -> Mapping[str, Any]:
        return read_checksummed(self.folder / _MANIFEST) or {}

    def _of(self, name: str) -> npt.NDArray[np.int64]:
        values = self._table[name].to_numpy()
        return values if self._chosen is None else values[self._chosen]


def write_rows(file: Path, rows: Iterable[tuple[int, Row]]) -> dict[str, object]:
    """Write numbered rows into an Arrow file; returns their manifest entries."""
    shapes: dict[tuple[str, ...], int] = {}

    def arrow(batch: Sequence[tuple[int, bytes, tuple[str, ...]]]) -> pyarrow.RecordBatch:
        numbers = [number for number, _, _ in batch]
        kinds = [shapes.setdefault(names, len(shapes)) for _, _, names in batch]
        values = zip(([text for _, text, _ in batch], numbers, kinds), _SCHEMA, strict=True)
        return pyarrow.record_batch([pyarrow.array(each, type=field.type) for each, field in values], schema=_SCHEMA)

    write_batches(file, _SCHEMA, map(arrow, _batches(rows)))
    return {"shapes": [list(names) for names in shapes]}


def _batches(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, bytes, tuple[str, ...]]]]:
    batch: list[tuple[int, bytes, tuple[str, ...]]] = []
    size = 0
    for number, row in rows:
        text = _json(row)
        batch.append((number, text, tuple(row)))
        size += len(text)
        if size > _BLOCK or len(batch) == _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _json(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_not_json).encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(row, default=_not_json).encode()


def _not_json(value: object) -> dict[str, str]:
    """JSON for a value that has none, such as a date; not as a string, which would be trained on."""
    return {type(value).__name__: str(value)}


def write_batches(file: Path, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> None:
    """Write batches into an Arrow file."""
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
