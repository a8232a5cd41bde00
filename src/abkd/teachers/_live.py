"""A teacher that is run at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from abkd.data import View
from abkd.models.language import CausalRows
from abkd.models.rows import ModelRows, Outputs
from abkd.ops import Rows
from abkd.teachers._types import Teacher, TeacherContext, TeacherReader


class LiveReader(TeacherReader):
    """A frozen model in eval mode, run at every step; it is never trained, saved or wrapped.

    ``model``: a causal language model, or any model as :class:`ModelRows`.
    """

    def __init__(self, model: nn.Module | ModelRows) -> None:
        self.rows = model if isinstance(model, ModelRows) else CausalRows(model)
        self.model = self.rows.model.eval()
        for parameter in self.model.parameters():  # one by one: a TorchScript module has no requires_grad_
            parameter.requires_grad_(False)
        self.models = (self.model,)
        self.head_rows = self.rows.head_rows

    def __call__(self, view: View) -> Rows:
        """The model's rows for ``view``."""
        return self.read(view).rows

    @torch.no_grad()
    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Rows]:
        return self.rows.read(view, features, stop=stop).first(self.classes)

    def feature_shapes(self, features: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return self.rows.feature_shapes(features)

    def check(self) -> None:
        self.rows.check()


@dataclass(frozen=True)
class Live(Teacher):
    """The model in ``teacher_model_name_or_path``, run at every step."""

    features: ClassVar[frozenset[str] | None] = None

    def open(self, context: TeacherContext) -> LiveReader:
        (model,) = context.models
        return LiveReader(model)
