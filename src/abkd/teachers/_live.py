"""A teacher that is run at every step."""

from __future__ import annotations

import torch
from torch import nn

from abkd.data import View
from abkd.models.language import CausalRows
from abkd.ops._types import Rows


class Live:
    """The teacher model itself: frozen, in eval mode, never part of what is trained, saved or wrapped."""

    def __init__(self, model: nn.Module, *, classes: int | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.rows = CausalRows(self.model, classes=classes)

    @torch.no_grad()
    def __call__(self, view: View) -> Rows:
        """The teacher's rows for what it reads, without gradient."""
        return self.rows(view)
