"""An ensemble of teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import nn

from abkd.data import View
from abkd.errors import ConfigError
from abkd.models.rows import ModelRows
from abkd.ops import Averaged
from abkd.teachers._live import LiveReader
from abkd.teachers._types import Teacher, TeacherContext, TeacherReader

Average = Literal["probabilities", "logits"]


class EnsembleReader(TeacherReader):
    """Runs several models one after the other and uses only the classes that all of them have."""

    def __init__(self, models: Sequence[nn.Module | ModelRows], average: Average) -> None:
        self.average: Average = average
        self.members = [LiveReader(model) for model in models]
        self.models = tuple(member.model for member in self.members)
        self.head_rows = min(member.head_rows for member in self.members)

    def __call__(self, view: View) -> Averaged:
        """The rows of all models; they are averaged where they are used."""
        classes = self.head_rows if self.classes is None else self.classes
        return Averaged(tuple(member(view).first(classes) for member in self.members), self.average)

    def check(self) -> None:
        for member in self.members:
            member.check()


@dataclass(frozen=True)
class Ensemble(Teacher):
    """All models in ``teacher_model_name_or_path``, combined into one teacher.

    Args:
        average: what is averaged to get p: "probabilities", which gives the mixture of the teachers; or "logits", which
            gives their normalised geometric mean, small wherever any of them is small.

    Raises:
        ConfigError: an unknown ``average``.
    """

    average: Average = "probabilities"
    needs: ClassVar[tuple[int, int | None]] = (2, None)

    def __post_init__(self) -> None:
        if self.average not in get_args(Average):
            raise ConfigError(f"average must be {' or '.join(get_args(Average))}, got {self.average!r}")

    def open(self, context: TeacherContext) -> EnsembleReader:
        return EnsembleReader(context.models, self.average)
