"""Teacher interfaces: a ``Teacher`` value specifies where p comes from and opens a ``TeacherReader`` for a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from abkd.data import View
from abkd.errors import ConfigError
from abkd.models.rows import ModelRows, Outputs
from abkd.ops import TeacherRows
from abkd.stateful import Stateful

LAST_HIDDEN = frozenset({"hidden.-1"})
"""The only feature of a cache of hidden states: the input of the head."""


@dataclass(frozen=True)
class TeacherContext:
    """The parts of a run that a teacher may need."""

    student: ModelRows
    models: Sequence[nn.Module | ModelRows] = ()
    """The loaded models of teacher_model_name_or_path; empty for a cache or a teacher derived from the student.
    A bare module is a causal language model."""
    identity: Mapping[str, object] | None = None
    """The teacher, tokenizer and chat template that a cache must match: ``abkd.teachers.identity``."""
    temperature: float = 1.0
    device: torch.device | str = "cpu"


class TeacherReader(Stateful):
    """A teacher opened for one run: returns the rows of a view, always without gradients.

    ``head_rows``: classes of its own head. ``classes``: how many of them are used (set once both models are known).
    ``models``: modules to move to the device; none of them is trained, saved with the student or wrapped.
    """

    head_rows: int
    classes: int | None = None
    models: Sequence[nn.Module] = ()
    exact: bool = True
    """Whether p is complete; a cache of the top-k classes is not."""

    @abstractmethod
    def __call__(self, view: View) -> TeacherRows:
        """The teacher's rows for ``view``."""

    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[TeacherRows]:
        """The rows for ``view`` and the named features; with ``stop`` no rows, where that saves time.

        Raises:
            ConfigError: a feature that it does not provide.
        """
        if features:
            raise ConfigError(f"{type(self).__name__} has no features; use teacher: Live()")
        return Outputs(self(view))

    def feature_shapes(self, features: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shape of each feature of one row."""
        return {}

    def check(self) -> None:
        """Check, where possible, that its rows match the model's own output."""

    def check_covers(self, examples: Iterable[object], name: str) -> None:
        """Raise DataError if rows of these examples are not available (a cache of other data)."""


class Teacher:
    """Where p comes from: a frozen value, written as its constructor call."""

    needs: ClassVar[tuple[int, int | None]] = (1, 1)
    """How many models teacher_model_name_or_path must name: minimum and maximum (None: no limit)."""

    features: ClassVar[frozenset[str] | None] = frozenset()
    """The names of the features that its reader provides; None: whatever its model has."""

    cached: ClassVar[bool] = False
    """Whether p was computed beforehand: no model is loaded, and only rows in the cache are available."""

    def open(self, context: TeacherContext) -> TeacherReader:
        """Open the reader of this teacher for a run."""
        raise NotImplementedError
