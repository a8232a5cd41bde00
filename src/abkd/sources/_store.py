"""Teacher text on disk: a JSONL that is assembled once all rows exist, and parts that grow row by row.

    text.jsonl          {"prompt", "completion", "completion_ids", "finished", "key"} in the order of the data
    text.json           the settings it was written with, and the blank rows, which a training file may not have
    text.jsonl.part-R   rows that process R has written since; its last line may be incomplete

A row moves from a part into the JSONL and is always in at least one of them, so a reader that starts with the parts
finds every row. TeacherSamples trains on the token ids; a reader of the text adds an EOS to every completion, even to
one that was clipped ("finished": false).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from abkd.errors import DataError, OutputDirError
from abkd.generation import Completion, as_bytes
from abkd.storage import atomic_write, check_place_of, disk_errors, lock_file, read_json

logger = logging.getLogger("abkd")


class Row(NamedTuple):
    """One line: a prompt and its completion."""

    key: str
    prompt: str
    completion: str
    written: Completion

    def values(self) -> dict[str, object]:
        """The row as a JSON object."""
        ids, finished = self.written
        texts = {"prompt": self.prompt, "completion": self.completion}
        return {**texts, "completion_ids": ids, "finished": finished, "key": self.key}

    def line(self) -> bytes:
        """The row as a line of the file."""
        return json.dumps(self.values(), ensure_ascii=False).encode() + b"\n"


class Answers:
    """Completions by the key of their prompt, at four bytes per token."""

    def __init__(self) -> None:
        self._ids: dict[str, array[int]] = {}
        self._clipped: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._ids

    def __getitem__(self, key: str) -> Completion:
        return Completion(self._ids[key].tolist(), key not in self._clipped)

    def add(self, key: str, written: Completion) -> None:
        """Add a completion; the first one of a key is kept."""
        if key not in self._ids:
            self._ids[key] = array("i", written.ids)
            if not written.finished:
                self._clipped.add(key)


class Part(NamedTuple):
    """The file that a process appends to."""

    handle: io.FileIO
    store: Store

    def add(self, rows: Iterable[Row]) -> None:
        """Write these rows immediately; raises StorageError if that fails."""
        left = memoryview(b"".join(row.line() for row in rows))
        with self.store.disk_errors():
            while left:
                left = left[self.handle.write(left) :]


def key_of(prompt: Sequence[int]) -> str:
    """The key of a prompt: a hash of its token ids, the same on every machine."""
    return hashlib.blake2b(as_bytes(prompt), digest_size=16).hexdigest()


class Store:
    """The teacher text at ``path``, written with the settings ``about``; processes and runs may share it."""

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self.path, self.record = path, path.with_suffix(".json")
        self.about: dict[str, object] = json.loads(json.dumps(about))  # as it is read back: a tuple becomes a list

    def check(self) -> None:
        """Check that existing text can be continued.

        Raises:
            OutputDirError: it was written with other settings, or by another program.
        """
        check_place_of(self.path, "text")
        exists = self.path.exists() or bool(self.parts())  # checked first: the record is written before them
        if not self.record.is_file():
            if exists:
                raise OutputDirError(
                    f"{self.path} is in use, without a {self.record.name} that records how it was written: "
                    "set another file"
                )
            return
        known = self._recorded("about")
        for name in sorted({*known, *self.about}):
            if known.get(name) != self.about.get(name):
                raise OutputDirError(
                    f"{self.path} was written with other settings ({name}: expected {_short(self.about.get(name))}, "
                    f"got {_short(known.get(name))}): set another file, or remove {self.record.name} and "
                    f"{self.path.name} to generate the text again"
                )

    def begin(self) -> None:
        """Write the record of the settings, before the text."""
        with self.disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.check()
            if not self.record.is_file():
                self._write_record({}, {})

    def read(self) -> Answers:
        """All completions.

        Raises:
            DataError: a line is corrupt.
        """
        found = Answers()
        for row, _ in self._lines():
            found.add(row.key, row.written)
        return found

    @contextlib.contextmanager
    def part(self, process: int) -> Iterator[Part]:
        """The part of a process, to append to: locked, and without an incomplete last line.

        Waits for another run that writes as the same process.
        """
        path = self.path.with_name(f"{self.path.name}.part-{process}")
        with _locked(path) as handle:
            handle.truncate(_whole(path))
            yield Part(handle, self)

    def merge(self, order: Iterable[str]) -> bool:
        """Assemble the JSONL, with keys in this order and all others after them, if none of the order is missing.

        Returns whether it is complete.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.disk_errors())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(self.path.with_name(f".{self.path.name}.lock"), keep=False))
            parts = [path for path in self.parts() if _try_lock(path, stack)]  # the others are still being written
            texts, blank, counts = self._sorted()
            if any(key not in texts and key not in blank for key in order):
                return False
            if parts or not self.path.is_file():
                lines = {key: texts.pop(key) for key in order if key in texts}
                atomic_write(self.path, b"".join([*lines.values(), *texts.values()]))
                self._write_record(blank, counts)
            for path in parts:
                path.unlink()
        return True

    def disk_errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns a failed write into a StorageError."""
        way_out = "What was written is kept; free disk space and run the same command again"
        return disk_errors(f"the teacher's text {self.path}", way_out)

    def stamp(self) -> tuple[int, int] | None:
        """A value that changes when the text is assembled."""
        with contextlib.suppress(FileNotFoundError):
            found = self.record.stat()
            return found.st_mtime_ns, found.st_ino
        return None

    def parts(self) -> list[Path]:
        """The parts that are not yet in the JSONL."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part-*"))

    def _lines(self) -> Iterator[tuple[Row, bytes]]:
        for path in [*self.parts(), self.path]:
            with contextlib.suppress(FileNotFoundError):  # just assembled: the JSONL, read last, has it
                yield from _read(path)
        if self.record.is_file():
            for values in self._recorded("blank"):
                row = _row(values)
                yield row, row.line()

    def _sorted(self) -> tuple[dict[str, bytes], dict[str, object], dict[str, int]]:
        """Lines with text and rows without, by key, and the counts."""
        texts: dict[str, bytes] = {}
        blank: dict[str, object] = {}
        counts = {"prompts": 0, "blank": 0, "clipped": 0, "tokens": 0}
        for row, line in self._lines():
            if row.key in texts or row.key in blank:
                continue
            if row.completion.strip():
                texts[row.key] = line
            else:
                blank[row.key] = row.values()
                counts["blank"] += 1
            counts["prompts"] += 1
            counts["clipped"] += not row.written.finished
            counts["tokens"] += len(row.written.ids)
        return texts, blank, counts

    def counts(self) -> dict[str, int]:
        """The numbers of prompts, blank completions, clipped completions and tokens."""
        return self._recorded("counts")

    def _recorded(self, name: str) -> Any:
        try:
            return read_json(self.record)[name]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.record} is not a record of teacher text, or is corrupt ({error}): set another file; if it was "
                f"such a record, remove it and {self.path.name} to generate the text again"
            ) from error

    def _write_record(self, blank: Mapping[str, object], counts: Mapping[str, int]) -> None:
        values = {"about": self.about, "counts": counts, "blank": list(blank.values())}
        atomic_write(self.record, json.dumps(values, indent=1, ensure_ascii=False).encode())


def _row(values: Any) -> Row:
    ids, finished = values["completion_ids"], values["finished"]
    key, prompt, completion = values["key"], values["prompt"], values["completion"]
    if not (isinstance(finished, bool) and all(isinstance(text, str) for text in (key, prompt, completion))):
        raise TypeError
    if min(array("i", ids), default=0) < 0:
        raise ValueError
    return Row(key, prompt, completion, Completion(ids, finished))


def _read(path: Path) -> Iterator[tuple[Row, bytes]]:
    """The rows of a file with their lines; an incomplete last line is skipped."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield _row(json.loads(line)), line if line.endswith(b"\n") else line + b"\n"
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                if not line.endswith(b"\n"):
                    return
                raise DataError(
                    f"{path}, line {number} is corrupt: remove the line to have its prompt answered again"
                ) from error


def _whole(path: Path) -> int:
    """The offset at which the last complete line of a file ends."""
    with path.open("rb") as handle:
        return sum(len(line) for line in handle if line.endswith(b"\n"))


@contextlib.contextmanager
def _locked(path: Path, *, keep: bool = True) -> Iterator[io.FileIO]:
    """A file that is open for appending, locked for this process; without ``keep`` it is removed afterwards."""
    while True:
        handle = path.open("ab", buffering=0)
        if not lock_file(handle):
            logger.info("abkd: another run is writing %s; waiting for it", path)
            lock_file(handle, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(handle.fileno())):
                break
        handle.close()  # removed while waiting for it
    with handle:
        yield handle
        if not keep:
            path.unlink()


def _try_lock(path: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a file until the stack ends, unless another process has it."""
    handle = stack.enter_context(path.open("ab"))
    return lock_file(handle)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
