"""The parameters of an objective's terms, trained with the student but not part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from abkd.objective import OpenObjective

_NAME = "abkd_terms"


@contextmanager
def attached(objective: OpenObjective, student: nn.Module, device: torch.device) -> Iterator[None]:
    """Register the terms as one submodule of the student, if they have parameters.

    Data parallelism, sharding and the optimizer then see their parameters, because the loss runs inside the student's
    forward. They are left out of what is saved as the student, and removed afterwards.
    """
    objective.modules.to(device)
    if not objective.has_parameters:
        yield
        return
    setattr(student, _NAME, objective.modules)
    names = [name for name in student.state_dict() if name.startswith(f"{_NAME}.")]
    of_class: Any = getattr(student, "_keys_to_ignore_on_save", None)
    of_transformers = hasattr(student, "save_pretrained")
    if of_transformers:
        student._keys_to_ignore_on_save = [*(of_class or []), *names]  # type: ignore[assignment]

    def not_missing(_: nn.Module, found: Any) -> None:
        found.missing_keys[:] = [name for name in found.missing_keys if name not in names]

    hook = student.register_load_state_dict_post_hook(not_missing)  # a checkpoint keeps them in a file of their own
    try:
        yield
    finally:
        hook.remove()
        delattr(student, _NAME)
        if of_transformers:
            student._keys_to_ignore_on_save = of_class


def without_terms(state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """A student's state dict without the parameters of terms."""
    return None if state is None else {name: value for name, value in state.items() if f"{_NAME}." not in name}
