"""What a teacher is: a value that says where p comes from, and the reader that it opens for a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from abkd.data import Example, View
from abkd.models.rows import ModelRows
from abkd.ops import TeacherRows


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher may need to know of its run."""

    student: ModelRows
    models: Sequence[nn.Module | ModelRows] = ()
    """The models that teacher_model_name_or_path names, loaded; none for a cache or a teacher made of the student.
    A bare module is a causal language model."""
    identity: Mapping[str, Any] | None = None
    """Which teacher, tokenizer and template a cache must be of: ``abkd.teachers.identity``."""
    temperature: float = 1.0
    device: torch.device | str = "cpu"


class TeacherReader:
    """A teacher at work in one run: the rows of what it reads, always without gradient.

    ``head_rows``: classes of its own head. ``classes``: how many of them are used (set once both models are known).
    ``models``: what is to be put on the device; none of it is trained, saved with the student or wrapped.
    """

    head_rows: int
    classes: int | None = None
    models: Sequence[nn.Module] = ()
    exact: bool = True
    """Whether p is complete; a cache of the likeliest classes is not."""

    def __call__(self, view: View) -> TeacherRows:
        """The teacher's rows for what it reads."""
        raise NotImplementedError

    def check(self) -> None:
        """Prove that its rows are what the model itself says, where that can be proved."""

    def check_covers(self, examples: Iterable[Example], name: str) -> None:
        """Raises DataError where rows of these examples are not to be had (a cache of other data)."""

    def after_step(self, step: int) -> None:
        """Told after each optimizer step (a teacher made of the student follows it)."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`."""

    def logs(self) -> dict[str, float]:
        """Numbers about what was read since they were asked for last."""
        return {}


class Teacher:
    """Where p comes from: a frozen value, written as its constructor call."""

    needs: ClassVar[tuple[int, int | None]] = (1, 1)
    """How many models teacher_model_name_or_path must name, at least and at most (None: any number)."""

    cached: ClassVar[bool] = False
    """Whether p was worked out beforehand: no model is loaded, and only known text can be asked about."""

    def open(self, context: TeacherContext) -> TeacherReader:
        """The reader of this teacher."""
        raise NotImplementedError
