"""Helpers for the tests of caches: a teacher, its data, and a cache of it in one line."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from abkd.data import Collator, Example, TokenizedDataset, View, prepare_dataset
from abkd.data.vocabulary import vocabulary_size
from abkd.models.language import CausalRows
from abkd.teachers import HiddenCache, LiveReader, TeacherContext, TopKCache, identity
from abkd.teachers.caches._build import Built, build_cache
from training_parts import gpt2, llama, rows, teacher, tokenizer

Cache = TopKCache | HiddenCache


@functools.cache
def data(count: int = 12) -> TokenizedDataset:
    return prepare_dataset(rows(count), tokenizer(), max_length=64)


same_teacher = functools.cache(teacher)
"""For those who leave it as it is."""


@functools.cache
def known(name: str = "somewhere/teacher", fingerprint: str = "0123456789abcdef") -> dict[str, Any]:
    return {**identity(name, "main", tokenizer()), "teacher": fingerprint}


def build(spec: Cache, examples: Iterable[Example] | None = None, model: Any = None, **options: Any) -> Built:
    loaded = CausalRows((same_teacher() if model is None else model).eval())
    options = {"identity": known(), "tokens": vocabulary_size(tokenizer()), **options}
    return build_cache(spec, data() if examples is None else examples, lambda: loaded, **options)


def setting(**options: Any) -> TeacherContext:
    return TeacherContext(**{"student": CausalRows(llama(0)), "identity": known(), **options})


def view(examples: Sequence[Example], **options: Any) -> View:
    return Collator(pad_token_id=0, **options)(examples)["batch"].teacher


def live(model: Any = None) -> LiveReader:
    return LiveReader(same_teacher() if model is None else model)


def logits(reader: Any, examples: Sequence[Example], **options: Any) -> torch.Tensor:
    return reader(view(examples, **options)).logits(slice(None))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Shards by name, with values that change when one is written again."""
    found = folder.glob("rows-*.safetensors")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in found}


FAMILIES = {"llama": teacher, "gpt2": lambda: gpt2(7, width=48, layers=2, sharpness=6.0)}
