"""Reads the rows of a view from a cache."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from abkd.data import View
from abkd.errors import ConfigError, DataError, VocabularyError
from abkd.models.rows import Outputs
from abkd.ops import Dense, Projected, TopK
from abkd.teachers._types import LAST_HIDDEN, TeacherReader
from abkd.teachers.caches import _manifest
from abkd.teachers.caches._encoders import read_head
from abkd.teachers.caches._images import EpochImages
from abkd.teachers.caches._keys import image_keys, sequence_keys, sequences_of
from abkd.teachers.caches._likeliest import decode
from abkd.teachers.caches._store import Store, open_store

_WAY_OUT = (
    "Other data, another prompt, chat template or max_length gives other sequences: run abkd cache with this recipe, "
    "which adds what is missing"
)
_WAY_OUT_OF_IMAGES = (
    "Other data, another augmentation, seed or image_size, more epochs, or for TopKCache other labels give other "
    "images: run abkd cache with this recipe, which adds what is missing"
)
_CHECKED = 4096  # images of a long run: checking all of them would take as long as reading all its data


class CacheReader(TeacherReader):
    """Reads the stored columns of the rows of a view.

    Raises:
        ConfigError: the folder has no cache, or one that does not match the wanted facts.
    """

    labelled: ClassVar[bool] = False  # as in CachedTeacher

    def __init__(self, folder: Path, wanted: Mapping[str, object]) -> None:
        manifest = _manifest.read_manifest(folder)
        if manifest is None:
            state = "is corrupt (manifest.json was changed)" if (folder / _manifest.FILE).exists() else "does not exist"
            raise ConfigError(f"the cache {folder} {state}: run abkd cache with this recipe to build or repair it")
        _manifest.check(folder, manifest, wanted)
        self.manifest, self.head_rows = manifest, manifest["head_rows"]
        self.of_images = _manifest.of_images(manifest)
        self.class_names: list[str] | None = manifest.get("class_names")
        self.store: Store = open_store(folder, _manifest.owner(manifest))

    def columns(self, view: View) -> dict[str, Tensor]:
        """The stored columns of the rows of ``view``, in row order, on the device of the view.

        Raises:
            DataError: a row is not in the cache.
        """
        found = self._images(view) if self.of_images else self._tokens(view)
        return {name: column.to(view.rows.device) for name, column in self.store.take(*found).items()}

    def check(self) -> None:
        if self.of_images and self.classes not in (None, self.head_rows):
            raise VocabularyError(
                f"the teacher of the cache {self.store.folder} has {self.head_rows} classes, but the student has "
                f"{self.classes}: give the student a head for the teacher's classes"
            )

    def check_covers(self, examples: Iterable[object], name: str) -> None:
        """Raise DataError, with their number, if sequences or images of these examples are not stored.

        For a long run on images, a sample from all its epochs is checked if the last build was finished.
        """
        if isinstance(examples, EpochImages) and self.manifest.get("sequences") == len(self.store.places):
            examples = examples.some(_CHECKED)
        of_each = map(partial(sequences_of, labelled=self.labelled), examples)
        wanted = list(map(self.store.covers, itertools.chain.from_iterable(of_each)))
        missing = wanted.count(False)
        if missing:
            raise DataError(
                f"{name}: {missing} of {len(wanted)} {'images' if self.of_images else 'sequences'} are not in the "
                f"cache {self.store.folder}{self._broken()}. {self._way_out}"
            )

    def _tokens(self, view: View) -> tuple[Tensor, Tensor]:
        """For each row, its shard and its index in the shard."""
        shards, rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
        for key, positions in sequence_keys(view):
            place = self.store.places.get(key)
            found = None if place is None else place.rows(positions)
            if place is None or found is None:
                raise self._missing("a sequence")
            shards.append(torch.full_like(found, place.shard))
            rows.append(found)
        return torch.cat(shards), torch.cat(rows)

    def _images(self, view: View) -> tuple[Tensor, Tensor]:
        labels = view.labels if self.labelled else None
        places = list(map(self.store.places.get, image_keys(view.inputs["pixels"], labels)))
        if None in places:
            raise self._missing(f"{places.count(None)} of the {len(places)} images of a batch")
        found = torch.tensor([(place.shard, place.start) for place in places if place is not None])[view.rows.cpu()]
        return found[:, 0], found[:, 1]

    def _missing(self, what: str) -> DataError:
        verb = "are" if self.of_images else "is"
        return DataError(f"{what} {verb} not in the cache {self.store.folder}{self._broken()}. {self._way_out}")

    @property
    def _way_out(self) -> str:
        return _WAY_OUT_OF_IMAGES if self.of_images else _WAY_OUT

    def _broken(self) -> str:
        broken = [f"{name}: {reason}" for name, reason in self.store.broken.items()]
        return f" (not used: {'; '.join(broken)})" if broken else ""


class TopKReader(CacheReader):
    """Rows of a :class:`TopKCache`: the top-k classes, the tail, and the target's log-probability.

    For images of which all classes are stored: logits.
    """

    labelled = True

    def __init__(self, folder: Path, wanted: Mapping[str, object]) -> None:
        super().__init__(folder, wanted)
        self.head_rows: int = self.manifest["classes"]
        self.exact = self.manifest["k"] >= self.head_rows
        self._covered, self._rows = torch.zeros((), dtype=torch.float64), 0

    def check(self) -> None:
        super().check()
        if self.classes not in (None, self.head_rows):
            raise VocabularyError(
                f"the cache {self.store.folder} holds probabilities over {self.head_rows} classes, but the student "
                f"uses {self.classes} of them: use the tokenizer and student it was built for, or HiddenCache()"
            )

    def __call__(self, view: View) -> TopK | Dense:
        rows = decode(self.columns(view), self.head_rows)
        if len(rows) and int(rows.ids.amax()) >= self.head_rows:
            raise DataError(
                f"the cache {self.store.folder} has class ids beyond its {self.head_rows} classes, so it was not "
                "written by abkd: remove it and build it with abkd cache"
            )
        if self.of_images and self.exact:  # logits can be used at any temperature
            logits = rows.log_p * self.manifest["temperature"]
            return Dense(torch.empty_like(logits).scatter_(-1, rows.ids, logits))
        covered = -torch.expm1(rows.log_tail.double())
        self._covered, self._rows = self._covered.to(covered.device) + covered.sum(), self._rows + len(rows)
        if self.of_images and bool(rows.log_target.isnan().any()):  # type: ignore[union-attr]  # it is stored
            return dataclasses.replace(rows, log_target=None)
        return rows

    def logs(self) -> dict[str, float]:
        """``covered_mass``: the teacher's mean probability of the stored classes."""
        if not self._rows:
            return {}
        mean = self._covered.item() / self._rows
        self._covered, self._rows = torch.zeros((), dtype=torch.float64), 0
        return {"covered_mass": mean}


class HiddenReader(CacheReader):
    """Rows of a :class:`HiddenCache`: ``Projected``, as from the live teacher."""

    def __init__(self, folder: Path, wanted: Mapping[str, object], device: torch.device | str) -> None:
        super().__init__(folder, wanted)
        head = read_head(folder, self.manifest)
        if head is None:
            raise DataError(f"the teacher's head in {folder} is missing or was changed: run abkd cache to repair it")
        bias = None if head.bias is None else head.bias.to(device)
        self.head = head._replace(weight=head.weight.to(device), bias=bias)

    def __call__(self, view: View) -> Projected:
        return self.read(view).rows

    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Projected]:
        if unknown := set(features) - LAST_HIDDEN:
            raise ConfigError(
                f"a HiddenCache has only hidden.-1, got {', '.join(sorted(unknown))}; use teacher: Live()"
            )
        hidden = self.columns(view)["hidden"].to(self.head.weight.dtype)
        return Outputs(Projected(hidden, self.head), dict.fromkeys(features, hidden)).first(self.classes)

    def feature_shapes(self, features: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(features, (self.head.weight.shape[-1],))


class LogitsReader(CacheReader):
    """Rows of a :class:`HiddenCache` of images: ``Dense``, as from the live teacher."""

    def __call__(self, view: View) -> Dense:
        logits = self.columns(view)["logits"].to(getattr(torch, self.manifest["computed_in"]))
        return Dense(logits if self.classes is None else logits[:, : self.classes])
