"""The parameters of an objective's terms, trained with the student but not part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from abkd.errors import ConfigError
from abkd.objective import Objective, OpenObjective
from abkd.tasks import Models
from abkd.terms import ModelInfo

_NAME = "abkd_terms"


def open_objective(spec: Objective, models: Models, seed: int) -> OpenObjective:
    """Open the objective of a run, with the shapes of the features that its terms need.

    Raises:
        ConfigError: a feature does not exist, or a term does not suit the models.
    """
    needs, teacher = spec.ever_needs(), models.teacher
    if needs.teacher_features and teacher is None:
        raise ConfigError(f"{needs.teacher_features[0]} is a feature of the teacher, and there is none; set one")
    return spec.open(
        ModelInfo(
            models.student.feature_shapes(needs.student_features),
            {} if teacher is None else teacher.feature_shapes(needs.teacher_features),
            seed,
        )
    )


@contextmanager
def attached(objective: OpenObjective, student: nn.Module, device: Any) -> Iterator[None]:
    """Register the terms as one submodule of the student, if they have parameters.

    Data parallelism, sharding and the optimizer then see their parameters, because the loss runs inside the student's
    forward. They are left out of what is saved as the student, and removed afterwards.
    """
    objective.modules.to(device)
    if not objective.has_parameters:
        yield
        return
    ignored = getattr(student, "_keys_to_ignore_on_save", None)
    setattr(student, _NAME, objective.modules)
    names = [name for name in student.state_dict() if name.startswith(f"{_NAME}.")]
    student._keys_to_ignore_on_save = [*(ignored or []), *names]  # type: ignore[assignment]
    try:
        yield
    finally:
        delattr(student, _NAME)
        student._keys_to_ignore_on_save = ignored  # type: ignore[assignment]


def without_terms(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A student's state dict without the parameters of terms."""
    return None if state is None else {name: value for name, value in state.items() if f"{_NAME}." not in name}
