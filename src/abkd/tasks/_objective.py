"""Opens the objective of a run for its models."""

from __future__ import annotations

from abkd.errors import ConfigError
from abkd.objective import Objective, OpenObjective
from abkd.tasks.base import Models
from abkd.terms import ModelInfo


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
