"""The two caches as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkd.errors import ConfigError
from abkd.paths import cache_directory
from abkd.teachers._types import Teacher, TeacherContext, TeacherReader
from abkd.teachers.caches import _manifest

if TYPE_CHECKING:
    from abkd.models.rows import ModelRows
    from abkd.teachers.caches._encoders import Encoder

_DTYPES = ("float32", "bfloat16", "float16")


class CachedTeacher(Teacher):
    """A teacher whose rows were worked out beforehand, by ``abkd cache``; no model is loaded to read them."""

    cached: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    """Whether what is stored of an image depends on the class that it is of."""

    path: str | None

    def facts(self, identity: Mapping[str, Any] | None, temperature: float) -> dict[str, Any]:
        """What a folder of rows must be of to be this teacher's."""
        raise NotImplementedError

    def encoder(self, teacher: ModelRows, *, temperature: float, tokens: int | None) -> Encoder:
        """What turns the live ``teacher`` into rows to store; ``tokens`` are those of its tokenizer, if it has one."""
        raise NotImplementedError

    def folder(self, facts: Mapping[str, Any]) -> Path:
        """``path``; by default a folder of its own for these facts among abkd's caches.

        It may hold the rows of any number of data sets: what is there already is not made again.
        """
        if self.path is not None:
            return Path(self.path).expanduser()
        return cache_directory() / "teacher" / _manifest.owner(facts)

    def _check_path(self) -> None:
        if self.path is not None and not (isinstance(self.path, str) and self.path):
            raise ConfigError(f"path must be a folder, or None for one among abkd's caches, but it is {self.path!r}")


@dataclass(frozen=True)
class TopKCache(CachedTeacher):
    """The k likeliest classes of every row with their probabilities, and the mass of all others as one class.

    ``k=64`` takes under 300 bytes a token. Built by ``abkd cache`` at the recipe's ``kd_temperature``, for its data; of
    images as they are in every epoch of its training. Where k is all classes of an image classifier, its rows are
    complete, and right to a 65534th of the way from the likeliest class to the last.

    Args:
        k: how many classes.
        path: where it lies; None: in abkd's cache directory, under a name that follows from what it is of.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    labelled = True  # the probability of its class

    k: int = 64
    path: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError(f"k must be a whole number of at least 1, but it is {self.k!r}")
        self._check_path()

    def facts(self, identity: Mapping[str, Any] | None, temperature: float) -> dict[str, Any]:
        return _manifest.facts("TopKCache", identity, k=self.k, temperature=float(temperature))

    def encoder(self, teacher: ModelRows, *, temperature: float, tokens: int | None) -> Encoder:
        from abkd.teachers.caches._encoders import LikeliestEncoder

        classes = teacher.head_rows if tokens is None else min(teacher.head_rows, tokens)
        return LikeliestEncoder(teacher, classes, self.k, temperature)

    def open(self, context: TeacherContext) -> TeacherReader:
        from abkd.teachers.caches._readers import TopKReader

        facts = self.facts(context.identity, context.temperature)
        return TopKReader(self.folder(facts), facts)


@dataclass(frozen=True)
class HiddenCache(CachedTeacher):
    """The teacher's last hidden states, and its head once: every class, without running the teacher again.

    Equal to the live teacher to rounding. A row takes 2 or 4 bytes for each of the teacher's hidden features. Storing a
    float32 teacher in 16 bits costs a forward KL of 5e-7 nats a token as "float16" and 3e-5 as "bfloat16" (measured on
    1536 rows of a 135 M model); the latter holds features of any size. Of an image classifier it is the logits that are
    stored, one for each class, of every image as it is in every epoch.

    Args:
        path: where it lies; None: in abkd's cache directory, under a name that follows from what it is of.
        dtype: "float32", "bfloat16" or "float16" to store in; None: the one that the teacher computes in.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    path: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, or None, but it is {self.dtype!r}")
        self._check_path()

    def facts(self, identity: Mapping[str, Any] | None, temperature: float) -> dict[str, Any]:
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
