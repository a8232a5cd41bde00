"""Building a cache: missing rows are computed once, and processes may stop or join at any time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abkd.data import Collator, Example
from abkd.errors import ConfigError
from abkd.models.rows import ModelRows
from abkd.storage import disk_errors
from abkd.teachers.caches import _manifest
from abkd.teachers.caches._encoders import Encoder, read_head
from abkd.teachers.caches._images import images_in, missing_images
from abkd.teachers.caches._keys import CachedSequence, EncodeBatch, distinct, union
from abkd.teachers.caches._lock import this_job, writing
from abkd.teachers.caches._specs import CachedTeacher
from abkd.teachers.caches._store import Store, check_ours, discard_broken, discard_unfinished, open_store, write_shard

SHARD_BYTES, SHARD_SECONDS = 64 << 20, 60.0  # the most work that a kill can lose
Progress = Callable[[int, int], None]
"""Called with (rows done, rows in total)."""


class Built(NamedTuple):
    """A finished cache: its size, and the number of rows that this process added (``made``)."""

    folder: Path
    sequences: int
    rows: int
    bytes: int
    made: int

    @property
    def bytes_per_row(self) -> float:
        """Bytes per row, with the index and without the head."""
        return self.bytes / max(self.rows, 1)


def build_cache(
    teacher: CachedTeacher,
    examples: Iterable[Any],
    load: Callable[[], ModelRows],
    *,
    identity: Mapping[str, object],
    tokens: int | None = None,
    temperature: float = 1.0,
    about: Mapping[str, object] | None = None,
    batch_size: int = 8,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Built:
    """Add the missing rows of ``examples`` to the cache folder of ``teacher``.

    May be killed at any moment and called again: complete shards are kept, and their rows are not computed again.
    Corrupt shards are reported (a warning), removed and rebuilt.

    Args:
        examples: tokenised rows, packed or not, of any number of data sets; or image data sets as a run reads them.
        load: loads the live teacher on its device; called only if something is missing.
        identity: :func:`abkd.teachers.identity` of the teacher, or ``image_identity``.
        tokens: vocabulary size of its tokenizer; None for images.
        temperature: kd_temperature.
        about: further entries for the manifest (max_length, fingerprints of the data).
        batch_size: sequences per forward; sequences of similar length are batched together, the longest first. Image
            data sets specify their own.
        workers: worker processes that read images.
        share: (rank, world size): missing rows are divided by key, so that no process waits for another.

    Raises:
        ConfigError: the folder holds another cache, or this teacher cannot be cached in this way.
        OutputDirError: another job is writing to the folder.
        NonFiniteError: the teacher's output is not finite.
        StorageError: a write failed; complete shards are kept.
    """
    facts = teacher.facts(identity, temperature)
    folder = teacher.folder(facts)
    work = _CacheBuild(folder, facts, {"name": identity["name"], "revision": identity["revision"], **(about or {})})
    work.check()
    with disk_errors(f"the cache {folder}", "Set another path"):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder, this_job(share[1]), first=work.mend, last=work.count):
        store = open_store(folder, work.owner, check=False)
        if _manifest.of_images(facts):
            passes: Any = list(examples)
            todo = _PendingRows(
                missing_images(store, passes, share, workers, labelled=teacher.labelled), images_in(passes, share)
            )
        else:
            todo = _sequences_to_do(store, examples, share, batch_size)
        first, made = next(todo.portions, None), 0
        if first is not None or work.manifest is None:
            rows = load()
            rows.check()
            encoder = teacher.encoder(rows, temperature=temperature, tokens=tokens)
            work.begin(encoder)
            todo.portions = itertools.chain([] if first is None else [first], todo.portions)
            made = _encode_all(encoder, todo, _ShardWriter(folder, work.owner), progress)
    store = open_store(folder, work.owner, check=False)
    return Built(folder, len(store.places), store.rows, store.bytes, made)


@dataclass
class _CacheBuild:
    """A cache folder that is being built."""

    folder: Path
    facts: dict[str, object]
    about: dict[str, object]

    @property
    def owner(self) -> str:
        return _manifest.owner(self.facts)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The folder's manifest; None if it must be written (again)."""
        known = _manifest.read_manifest(self.folder)
        if known is not None and "head" in known and read_head(self.folder, known) is None:
            return None
        return known

    def check(self) -> None:
        """Raise ConfigError if the folder holds something else."""
        known = _manifest.read_manifest(self.folder)
        if known is not None:
            _manifest.check(self.folder, known, self.facts)
        else:
            check_ours(self.folder)

    def mend(self) -> None:
        """Remove unfinished and corrupt shards."""
        discard_unfinished(self.folder)
        discard_broken(open_store(self.folder, self.owner))

    def begin(self, encoder: Encoder) -> None:
        """Write the manifest (and the head), or check that an existing one matches this encoder."""
        known = self.manifest
        if known is None:
            own = {**self.facts, **encoder.details, **self.about, **encoder.prepare(self.folder)}
            _manifest.write(self.folder, own)
            return
        for name, value in encoder.details.items():
            if known[name] != value:
                raise ConfigError(
                    f"the cache {self.folder} was started with a teacher whose {name} is {known[name]}, got {value}: "
                    "load the teacher as before (teacher_model_init_kwargs), or set another path"
                )

    def count(self) -> None:
        """Update the counts in the manifest."""
        store, known = open_store(self.folder, self.owner, check=False), _manifest.read_manifest(self.folder)
        if known is not None:
            counts = {"sequences": len(store.places), "rows": store.rows, "bytes": store.bytes}
            per_row = {"bytes_per_row": round(store.bytes / max(store.rows, 1), 1)}
            _manifest.write(self.folder, {**known, **self.about, **counts, **per_row})


def _missing(store: Store, wanted: Mapping[bytes, CachedSequence], share: tuple[int, int]) -> list[CachedSequence]:
    """The sequences of this process's ``share`` that are not stored, the longest first."""
    index, number = share
    mine = (sequence for key, sequence in wanted.items() if int.from_bytes(key[:8], "big") % number == index)
    missing: list[CachedSequence] = []
    for sequence in mine:
        if not store.covers(sequence):
            place = store.places.get(sequence.key)
            missing.append(sequence._replace(runs=union(place.runs if place else (), sequence.runs)))
    return sorted(missing, key=lambda sequence: (-len(sequence.ids), sequence.key))


@dataclass
class _PendingRows:
    """Batches of rows that are not stored yet; ``total`` has the same unit as their ``done``."""

    portions: Iterator[EncodeBatch]
    total: int


def _sequences_to_do(
    store: Store, examples: Iterable[Example], share: tuple[int, int], batch_size: int
) -> _PendingRows:
    missing = _missing(store, distinct(examples), share)
    return _PendingRows(_encode_batches(missing, batch_size), sum(sequence.rows for sequence in missing))


def _encode_batches(missing: Sequence[CachedSequence], batch_size: int) -> Iterator[EncodeBatch]:
    collate, done = Collator(pad_token_id=0), 0
    for start in range(0, len(missing), batch_size):
        sequences = list(missing[start : start + batch_size])
        batch = collate([_example(sequence) for sequence in sequences])["batch"]
        assert batch.targets is not None
        done += len(batch)
        yield EncodeBatch(sequences, batch.student, batch.targets, done)


@torch.no_grad()
def _encode_all(encoder: Encoder, todo: _PendingRows, writer: _ShardWriter, progress: Progress | None) -> int:
    """Encode and store all batches; returns the number of rows."""
    made = 0
    for sequences, view, targets, done in todo.portions:
        writer.put(sequences, encoder(view.to(encoder.device), targets.to(encoder.device)))
        made += len(view.rows)
        if progress is not None:
            progress(done, todo.total)
    writer.flush()
    return made


def _example(sequence: CachedSequence) -> Example:
    trained = [False] * len(sequence.ids)
    for first, count in sequence.runs:
        trained[first + 1 : first + 1 + count] = [True] * count
    return Example(input_ids=sequence.ids.tolist(), trained=trained)


@dataclass
class _ShardWriter:
    """Collects rows and writes them as shards."""

    folder: Path
    owner: str
    sequences: list[CachedSequence] = field(default_factory=list)
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def put(self, sequences: Iterable[CachedSequence], columns: dict[str, Tensor]) -> None:
        self.sequences += sequences
        self.parts.append(columns)
        if self._bytes() >= SHARD_BYTES or time.monotonic() - self.since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.sequences:
            columns = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
            write_shard(self.folder, self.owner, self.sequences, columns)
        self.sequences, self.parts, self.since = [], [], time.monotonic()

    def _bytes(self) -> int:
        return sum(column.nbytes for part in self.parts for column in part.values())
