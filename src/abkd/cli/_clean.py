"""``abkd clean``: what lies in the cache directory, and how it is deleted. Nothing that is not ours is touched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from abkd.errors import ConfigError, StorageError
from abkd.paths import cache_directory, readable
from abkd.storage import lock_file


class _Kind(NamedTuple):
    """Contents of a cache folder, and the pattern of its entries' names."""

    what: str
    names: str


KINDS = {
    "data": _Kind("copies of large data sets: rows and their tokens", r"\.?(rows|tokens)-[0-9a-f]{24}(\..*)?"),
    "teacher": _Kind("what teachers say about rows (abkd cache)", r"[0-9a-f]{16}"),
    "teacher-text": _Kind("what teachers wrote (abkd generate)", r"\.?[0-9a-f]{16}\.(json|jsonl.*)"),
    "native": _Kind("the loss, compiled for this machine", r"(?!\.).*\.so"),
}


def clean_caches(kinds: Sequence[str], console: Console) -> None:
    """Delete the caches of these kinds; of none: say what there is.

    Raises:
        ConfigError: a kind that does not exist.
        StorageError: something could not be deleted.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"{unknown[0]!r} is no kind of cache: there are {', '.join(KINDS)}, or --all")
    for kind in kinds or KINDS:
        entries = list(_entries(kind))
        if kinds:
            entries = [entry for entry in entries if _deleted(entry, console)]
        verb = "deleted" if kinds else KINDS[kind].what
        size, count = sum(size for _, size in entries), sum(entry.name[0] != "." for entry, _ in entries)
        line = f"{kind:<13}{count:>6} {readable(size):>9}  {verb}, {cache_directory() / kind}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not kinds:
        console.print("Nothing was deleted: abkd clean data deletes the copies of data, abkd clean --all everything.")


def _entries(kind: str) -> Iterator[tuple[Path, int]]:
    """Entries of this kind that abkd wrote, with their bytes; no link is followed."""
    folder = cache_directory() / kind
    if folder.is_dir() and not folder.is_symlink():
        for entry in sorted(folder.iterdir()):
            if re.fullmatch(KINDS[kind].names, entry.name) and not entry.is_symlink():
                files = entry.rglob("*") if entry.is_dir() else [entry]
                yield entry, sum(file.lstat().st_size for file in files if file.is_file())


def _deleted(found: tuple[Path, int], console: Console) -> bool:
    entry, _ = found
    if _in_use(entry):
        console.print(f"{entry} is being written, so it stays", markup=False, highlight=False, soft_wrap=True)
        return False
    try:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{entry} could not be deleted: {error.strerror}. See whose it is") from error
    return True


def _in_use(entry: Path) -> bool:
    """Whether a process holds the lock of what it writes: beside it or, of a teacher's rows, in it."""
    own = re.match(r"\.?((rows|tokens)-[0-9a-f]{24})", entry.name)
    lock = entry.parent / f".{own[1]}.lock" if own else entry / ".lock" if entry.is_dir() else entry
    if not lock.is_file():
        return False
    with lock.open("rb") as handle:
        return not lock_file(handle)
