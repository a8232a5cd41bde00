"""Rows out of a cache, for what a view reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abkd.data import Example, View
from abkd.errors import ConfigError, DataError, VocabularyError
from abkd.ops import Projected, TopK
from abkd.teachers._types import Reader
from abkd.teachers.caches import _manifest
from abkd.teachers.caches._encoders import read_head
from abkd.teachers.caches._keys import asked, readings
from abkd.teachers.caches._likeliest import decode
from abkd.teachers.caches._store import Store, open_store

_WAY_OUT = (
    "Other data, another prompt, chat template or max_length makes other sequences: run abkd cache with this recipe, "
    "which adds what is missing"
)


class CacheReader(Reader):
    """A cache at work: the stored columns of the rows that a view asks for.

    Raises:
        ConfigError: there is no cache in the folder, or it is of something else than the wanted facts.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, Any]) -> None:
        manifest = _manifest.read(folder)
        if manifest is None:
            state = "is broken (manifest.json was changed)" if (folder / _manifest.FILE).exists() else "is not there"
            raise ConfigError(f"the cache {folder} {state}: run abkd cache with this recipe, which builds or mends it")
        _manifest.check(folder, manifest, wanted)
        self.manifest, self.head_rows = manifest, manifest["head_rows"]
        self.store: Store = open_store(folder, _manifest.owner(manifest))

    def columns(self, view: View) -> dict[str, Tensor]:
        """What is stored of the rows of ``view``, in their order, on their device.

        Raises:
            DataError: a row is not in the cache.
        """
        parts: list[dict[str, Tensor]] = []
        for key, positions in asked(view):
            place = self.store.places.get(key)
            rows = None if place is None else place.rows(positions)
            if place is None or rows is None:
                raise DataError(f"a sequence is not in the cache {self.store.folder}{self._broken()}. {_WAY_OUT}")
            parts.append({name: column[rows] for name, column in self.store.columns[place.shard].items()})
        parts = parts or [{name: column[:0] for name, column in self.store.columns[0].items()}]
        return {name: torch.cat([part[name] for part in parts]).to(view.rows.device) for name in parts[0]}

    def check_covers(self, examples: Iterable[Example], name: str) -> None:
        """Raises DataError, with their number, where sequences of these examples are not stored."""
        wanted = list(map(self.store.covers, itertools.chain.from_iterable(map(readings, examples))))
        missing = wanted.count(False)
        if missing:
            raise DataError(
                f"{name}: {missing} of {len(wanted)} sequences are not in the cache {self.store.folder}"
                f"{self._broken()}. {_WAY_OUT}"
            )

    def _broken(self) -> str:
        broken = [f"{name}: {reason}" for name, reason in self.store.broken.items()]
        return f" (not used: {'; '.join(broken)})" if broken else ""


class TopKReader(CacheReader):
    """Rows of a :class:`TopKCache`: the k likeliest classes, the tail, and the target's log-probability."""

    def __init__(self, folder: Path, wanted: Mapping[str, Any]) -> None:
        super().__init__(folder, wanted)
        self.head_rows: int = self.manifest["classes"]
        self.exact = self.manifest["k"] >= self.head_rows
        self._covered, self._rows = torch.zeros((), dtype=torch.float64), 0

    def check(self) -> None:
        if self.classes not in (None, self.head_rows):
            raise VocabularyError(
                f"the cache {self.store.folder} holds probabilities over {self.head_rows} classes, and the student "
                f"has {self.classes} of them: use the tokenizer and the student that it was built for, or HiddenCache()"
            )

    def __call__(self, view: View) -> TopK:
        rows = decode(self.columns(view), self.head_rows)
        covered = -torch.expm1(rows.log_tail.double())
        self._covered, self._rows = self._covered.to(covered.device) + covered.sum(), self._rows + len(rows)
        return rows

    def logs(self) -> dict[str, float]:
        """``covered_mass``: the teacher's mean probability of the classes that are stored."""
        if not self._rows:
            return {}
        mean = self._covered.item() / self._rows
        self._covered, self._rows = torch.zeros((), dtype=torch.float64), 0
        return {"covered_mass": mean}


class HiddenReader(CacheReader):
    """Rows of a :class:`HiddenCache`: ``Projected``, as the live teacher gives them."""

    def __init__(self, folder: Path, wanted: Mapping[str, Any], device: torch.device | str) -> None:
        super().__init__(folder, wanted)
        head = read_head(folder, self.manifest)
        if head is None:
            raise DataError(f"the teacher's head in {folder} is missing or was changed: run abkd cache, which mends it")
        bias = None if head.bias is None else head.bias.to(device)
        self.head = head._replace(weight=head.weight.to(device), bias=bias)

    def __call__(self, view: View) -> Projected:
        hidden = self.columns(view)["hidden"].to(self.head.weight.dtype)
        rows = Projected(hidden, self.head)
        return rows if self.classes is None else rows.first(self.classes)
