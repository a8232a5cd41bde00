"""Cached teachers as recipe values: ``TopKCache`` and ``HiddenCache``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkd.errors import ConfigError
from abkd.paths import cache_directory
from abkd.teachers._types import LAST_HIDDEN, Teacher, TeacherContext, TeacherReader
from abkd.teachers.caches import _manifest

if TYPE_CHECKING:
    from abkd.models.rows import ModelRows
    from abkd.teachers.caches._encoders import Encoder

_DTYPES = ("float32", "bfloat16", "float16")


class CachedTeacher(Teacher):
    """A teacher whose rows were computed beforehand by ``abkd cache``; no model is loaded to read them."""

    cached: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    """Whether what is stored for an image depends on its label."""

    path: str | None

    def facts(self, identity: Mapping[str, object] | None, temperature: float) -> dict[str, object]:
        """The facts that a cache folder must match to belong to this teacher."""
        raise NotImplementedError

    def encoder(self, teacher: ModelRows, *, temperature: float, tokens: int | None) -> Encoder:
        """The encoder of the live ``teacher``; ``tokens``: vocabulary size of its tokenizer, if it has one."""
        raise NotImplementedError

    def folder(self, facts: Mapping[str, object]) -> Path:
        """``path``, or by default a folder for these facts in abkd's cache directory.

        It may hold the rows of any number of data sets: existing rows are not computed again.
        """
        if self.path is not None:
            return Path(self.path).expanduser()
        return cache_directory() / "teacher" / _manifest.owner(facts)

    def _check_path(self) -> None:
        if self.path is not None and not (isinstance(self.path, str) and self.path):
            raise ConfigError(f"path must be a folder, or None (in abkd's cache directory), got {self.path!r}")


@dataclass(frozen=True)
class TopKCache(CachedTeacher):
    """The top-k classes of every row with their probabilities, and the mass of all others as one class.

    ``k=64`` takes under 300 bytes per token. Built by ``abkd cache`` at the recipe's ``kd_temperature`` for its data,
    for images as they are in every epoch of the training. If k is all classes of an image classifier, its rows are
    complete, with a resolution of 1/65534 of the range of a row's log-probabilities.

    Args:
        k: how many classes.
        path: the cache folder; None: in abkd's cache directory, named by a hash of teacher, tokenizer, chat template,
            k and temperature.

    Raises:
        ConfigError: an invalid argument.
    """

    labelled = True  # the label's probability is stored

    k: int = 64
    path: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError(f"k must be an integer >= 1, got {self.k!r}")
        self._check_path()

    def facts(self, identity: Mapping[str, object] | None, temperature: float) -> dict[str, object]:
        return _manifest.facts("TopKCache", identity, k=self.k, temperature=float(temperature))

    def encoder(self, teacher: ModelRows, *, temperature: float, tokens: int | None) -> Encoder:
        from abkd.teachers.caches._encoders import TopKEncoder

        classes = teacher.head_rows if tokens is None else min(teacher.head_rows, tokens)
        return TopKEncoder(teacher, classes, self.k, temperature)

    def open(self, context: TeacherContext) -> TeacherReader:
        from abkd.teachers.caches._readers import TopKReader

        facts = self.facts(context.identity, context.temperature)
        return TopKReader(self.folder(facts), facts)


@dataclass(frozen=True)
class HiddenCache(CachedTeacher):
    """The teacher's last hidden states, and its head once: all classes, without running the teacher again.

    Equal to the live teacher up to rounding. A row takes 2 or 4 bytes per hidden feature of the teacher. Storing a
    float32 teacher in 16 bits costs a forward KL of 5e-7 nats per token as "float16" and 3e-5 as "bfloat16" (measured
    on 1536 rows of a 135 M model); bfloat16 does not overflow on large features. For an image classifier, the logits
    are stored, one per class, for every image as it is in every epoch.

    Args:
        path: the cache folder; None: in abkd's cache directory, named by a hash of teacher, tokenizer, chat template
            and dtype.
        dtype: "float32", "bfloat16" or "float16" to store in; None: the teacher's compute dtype.

    Raises:
        ConfigError: an invalid argument.
    """

    path: str | None = None
    dtype: str | None = None

    features: ClassVar[frozenset[str] | None] = LAST_HIDDEN

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, or None, got {self.dtype!r}")
        self._check_path()

    def facts(self, identity: Mapping[str, object] | None, temperature: float) -> dict[str, object]:
        return _manifest.facts("HiddenCache", identity, dtype=self.dtype)

    def encoder(self, teacher: ModelRows, *, temperature: float, tokens: int | None) -> Encoder:
        from abkd.models.language import CausalRows
        from abkd.teachers.caches._encoders import HiddenEncoder, LogitsEncoder

        if isinstance(teacher, CausalRows):
            return HiddenEncoder(teacher, self.dtype)
        return LogitsEncoder(teacher, self.dtype)

    def open(self, context: TeacherContext) -> TeacherReader:
        from abkd.teachers.caches._readers import HiddenReader, LogitsReader

        facts = self.facts(context.identity, context.temperature)
        if _manifest.of_images(facts):
            return LogitsReader(self.folder(facts), facts)
        return HiddenReader(self.folder(facts), facts, context.device)
