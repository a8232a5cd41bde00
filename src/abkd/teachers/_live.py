"""A teacher that is run at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from abkd.data import View
from abkd.models.language import CausalRows
from abkd.models.rows import ModelRows
from abkd.ops import Rows
from abkd.teachers._types import Teacher, TeacherContext, TeacherReader


class LiveReader(TeacherReader):
    """A frozen model in eval mode, run at every step; it is never trained, saved or wrapped.

    ``model``: a causal language model, or any model as :class:`ModelRows`.
    """

    def __init__(self, model: Any) -> None:
        self.rows = model if isinstance(model, ModelRows) else CausalRows(model)
        self.model = self.rows.model.eval()
        for parameter in self.model.parameters():  # one by one: a TorchScript module has no requires_grad_
            parameter.requires_grad_(False)
        self.models = (self.model,)
        self.head_rows = self.rows.head_rows

    @torch.no_grad()
    def __call__(self, view: View) -> Rows:
        """The model's rows for ``view``."""
        rows = self.rows(view)
        return rows if self.classes is None else rows.first(self.classes)

    def check(self) -> None:
        self.rows.check()


@dataclass(frozen=True)
class Live(Teacher):
    """The model in ``teacher_model_name_or_path``, run at every step."""

    def open(self, context: TeacherContext) -> LiveReader:
        (model,) = context.models
        return LiveReader(model)
