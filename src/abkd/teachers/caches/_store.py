"""Shards of rows in a folder: written atomically, verified before use, read through memory maps.

A shard is ``rows-*.safetensors`` with the columns of its rows, the ``keys`` [S, 16] of its sequences and the ``runs``
[R, 3] of their positions (sequence, first position, number), in the order of the rows. ``rows-*.json``, written after
it, holds its hash; a shard without one is ignored.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from abkd.errors import OutputDirError
from abkd.storage import DRAFTS, atomic_write, disk_errors, read_checksummed, write_checksummed
from abkd.teachers.caches._keys import KEY_BYTES, CachedSequence, Run, union

logger = logging.getLogger("abkd")

_KEYS, _RUNS, _OWNER = "keys", "runs", "cache"
_SHARD = re.compile(r"rows-[0-9a-f]{16}\.(safetensors|json)")
_OURS = re.compile(rf"manifest\.json|head\.safetensors|\.lock|{_SHARD.pattern}")
_FOREIGN = "it belongs to another cache"


class Place(NamedTuple):
    """The location of a sequence's rows: the shard, the first row in it, and the runs."""

    shard: int
    start: int
    runs: tuple[Run, ...]

    def rows(self, positions: Tensor) -> Tensor | None:
        """The rows [n] of the shard for ``positions`` [n], or None if one of them is not stored."""
        first, count = torch.tensor(self.runs).T.contiguous()
        run = torch.searchsorted(first, positions, right=True) - 1
        offset = positions - first[run]
        if bool((run < 0).any() | (offset >= count[run]).any()):
            return None
        return self.start + (count.cumsum(0) - count)[run] + offset

    def covers(self, runs: tuple[Run, ...]) -> bool:
        """Whether all rows of ``runs`` are stored."""
        return runs == self.runs or union(self.runs, runs) == self.runs


@dataclass
class Store:
    """The valid shards of a folder. ``broken``: the other shards, with the reason."""

    folder: Path
    columns: list[dict[str, Tensor]] = field(default_factory=list)
    places: dict[bytes, Place] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    rows: int = 0

    def covers(self, sequence: CachedSequence) -> bool:
        """Whether all rows of a sequence are stored."""
        place = self.places.get(sequence.key)
        return place is not None and place.covers(sequence.runs)

    def take(self, shards: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The columns of N rows: row ``rows[n]`` of shard ``shards[n]``."""
        used = shards.unique().tolist()
        if len(used) == 1:
            return {name: column[rows] for name, column in self.columns[used[0]].items()}
        taken = {name: column.new_empty(len(rows), *column.shape[1:]) for name, column in self.columns[0].items()}
        for shard in used:
            here = (shards == shard).nonzero().squeeze(1)
            for name, column in self.columns[shard].items():
                taken[name][here] = column[rows[here]]
        return taken


def open_store(folder: Path, owner: str, *, check: bool = True) -> Store:
    """Open the shards of the cache ``owner`` in ``folder``; with ``check``, each is verified against its hash.

    Shards that fail are not used.
    """
    store = Store(folder)
    for index in sorted(folder.glob("rows-*.json")):
        shard = index.with_suffix(".safetensors")
        try:
            reason = (corruption(index) if check else None) or _add(store, shard, owner)
        except (
            LookupError,
            OSError,
            SafetensorError,
            TypeError,
            ValueError,
        ) as error:  # valid checksum, other format
            reason = f"it is not a shard of a cache ({' '.join(str(error).split())})"
        if reason is None:
            store.bytes += shard.stat().st_size + index.stat().st_size
        else:
            store.broken[shard.name] = reason
    return store


def corruption(index: Path) -> str | None:
    """The reason why a shard is corrupt, or None if it is intact."""
    known, shard = read_checksummed(index), index.with_suffix(".safetensors")
    if known is None:
        return f"{index.name} cannot be read"
    if not shard.is_file():
        return "it is missing"
    size = shard.stat().st_size
    if size != known["bytes"]:
        return f"expected {known['bytes']} bytes, got {size}"
    with shard.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == known["sha256"]
    return None if same else "its checksum does not match"


def _add(store: Store, shard: Path, owner: str) -> str | None:
    with safe_open(shard, "pt") as file:
        if (file.metadata() or {}).get(_OWNER) != owner:
            return _FOREIGN
        columns = {name: _indexable(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no mapping
    stored, runs = columns.pop(_KEYS), columns.pop(_RUNS)
    _check_shapes(stored, runs, columns, store)
    keys, start, shared = stored.numpy().tobytes(), 0, {}
    for number, own in _grouped(runs.tolist()):
        found = shared.setdefault(own, own)  # the same for millions of images
        key = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
        place = Place(len(store.columns), start, found)
        known = store.places.get(key)
        if known is None or not known.covers(found):
            store.places[key] = place
        start += sum(count for _, count in found)
    store.columns.append(columns)
    store.rows += start
    return None


def _check_shapes(keys: Tensor, runs: Tensor, columns: Mapping[str, Tensor], store: Store) -> None:
    """Raise ValueError if a shard's parts do not fit each other, or its columns those of the earlier shards."""
    if keys.dtype != torch.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES or runs.dtype != torch.int32:
        raise ValueError("unexpected dtype or shape of keys or runs")
    if runs.ndim != 2 or runs.shape[1] != 3 or bool((runs < 0).any()):
        raise ValueError("unexpected shape or values of runs")
    numbers, rows = runs[:, 0].unique(), int(runs[:, 2].sum())
    if not torch.equal(numbers, torch.arange(len(keys), dtype=numbers.dtype)):
        raise ValueError("runs do not match keys")
    form = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
    if any(len(column) != rows for column in columns.values()):
        raise ValueError("columns do not match runs")
    if store.columns and form != {name: (each.dtype, each.shape[1:]) for name, each in store.columns[0].items()}:
        raise ValueError("columns differ from those of earlier shards")


def _grouped(runs: Iterable[Sequence[int]]) -> Iterator[tuple[int, tuple[Run, ...]]]:
    """The runs of each sequence."""
    number, found = 0, []
    for sequence, first, count in runs:
        if sequence != number:
            yield number, tuple(found)
            number, found = sequence, []
        found.append((first, count))
    if found:
        yield number, tuple(found)


def _indexable(column: Tensor) -> Tensor:
    """View uint16, which torch cannot index, as int16; the bits are the same."""
    return column.view(torch.int16) if column.dtype == torch.uint16 else column


def write_shard(folder: Path, owner: str, sequences: Sequence[CachedSequence], columns: Mapping[str, Tensor]) -> None:
    """Write the rows of some sequences to disk: all of them, or none.

    Raises:
        StorageError: the write failed.
    """
    keys = torch.frombuffer(bytearray(b"".join(sequence.key for sequence in sequences)), dtype=torch.uint8)
    runs = [(number, *run) for number, sequence in enumerate(sequences) for run in sequence.runs]
    own = {_KEYS: keys.view(-1, KEY_BYTES), _RUNS: torch.tensor(runs, dtype=torch.int32)}
    data = save({**columns, **own}, {_OWNER: owner})
    shard = folder / f"rows-{uuid.uuid4().hex[:16]}.safetensors"
    index = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "sequences": len(sequences)}
    with disk_errors(
        f"a shard of the cache {folder}", "Complete shards are kept; free disk space and run abkd cache again"
    ):
        atomic_write(shard, data)
        write_checksummed(shard.with_suffix(".json"), index)


def check_ours(folder: Path) -> None:
    """Raise OutputDirError if a folder without a valid manifest has files that are not of a cache; changes nothing."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputDirError(f"the path of the cache, {str(folder)!r}, is a file: set another path")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in names if not (_OURS.fullmatch(name) or fnmatchcase(name, DRAFTS))]
    if names and not strange and not any(_SHARD.fullmatch(name) for name in names):
        strange = [name for name in names if name == "manifest.json"]  # of another program
    if strange:
        raise OutputDirError(
            f"the path of the cache, {str(folder)!r}, has files that are not of a cache ({strange[0]}); nothing was "
            "changed: set another path"
        )


def discard_unfinished(folder: Path) -> None:
    """Remove what a process left behind that was killed while writing."""
    for draft in folder.glob(DRAFTS):
        draft.unlink(missing_ok=True)
    for shard in folder.glob("rows-*.safetensors"):
        if _SHARD.fullmatch(shard.name) and not shard.with_suffix(".json").exists():
            shard.unlink(missing_ok=True)


def discard_broken(store: Store) -> None:
    """Report and remove corrupt shards; their rows are then missing."""
    for name, reason in store.broken.items():
        if reason != _FOREIGN:  # another cache may use it
            logger.warning("abkd: rebuilding %s in %s: %s", name, store.folder, reason)
            (store.folder / name).unlink(missing_ok=True)
            (store.folder / name).with_suffix(".json").unlink(missing_ok=True)
