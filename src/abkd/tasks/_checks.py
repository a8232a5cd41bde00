"""What the tasks share: the number of teachers, opening them, the limits of a cache, shared weights, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from abkd.config import DistillConfig
from abkd.errors import ConfigError
from abkd.models.rows import ModelRows
from abkd.setting_rules import teacher_problem
from abkd.teachers import TeacherContext, TeacherReader
from abkd.terms import LossTerm, Term


def given_teachers(teacher: Any, args: DistillConfig) -> list[Any]:
    """The given teachers as a list, as many as this kind of teacher takes; empty if only labels are used.

    Raises:
        ConfigError: too few or too many.
    """
    given = [] if teacher is None else list(teacher) if type(teacher) in (list, tuple) else [teacher]
    labels_alone = not args.objective().ever_needs_teacher()
    if labels_alone and args.teacher_model_server_url:
        return [each for each in given if isinstance(each, str)]  # at most the model's name on the server
    problem = teacher_problem(args, len(given))
    if problem is not None:
        raise ConfigError(problem)
    return given


def open_reader(student: ModelRows, teachers: Sequence[ModelRows], args: DistillConfig) -> TeacherReader | None:
    """Open a teacher that is not cached; None if only labels are used.

    Raises:
        ConfigError: the teacher is a cache, which this task does not support.
    """
    spec = args.teacher
    if spec.cached:
        if teachers:
            raise ConfigError(f"teachers of the task {args.task} cannot be cached: set teacher: Live()")
        return None  # only labels are used
    if not teachers and spec.needs[0]:
        return None
    return spec.open(
        TeacherContext(student=student, models=teachers, temperature=args.kd_temperature, device=args.device)
    )


def check_full_distribution(reader: TeacherReader | None, args: DistillConfig) -> None:
    """Raise ConfigError if the objective needs full distributions, and the teacher is a top-k cache."""
    if reader is None or reader.exact:
        return
    terms = args.objective().all_terms()
    needing = [repr(term.row_weight) for term in terms if isinstance(term, Term) and term.row_weight is not None]
    needing += [described(term) for term in terms if term.needs().full_distribution]
    if needing:
        raise ConfigError(
            f"{needing[0]} needs full distributions, and {args.teacher!r} has only the top-k classes: set teacher: "
            "HiddenCache(), which has all classes, or Live()"
        )


def described(term: LossTerm) -> str:
    """A term in a message: its divergence, if that is what it consists of."""
    return repr(term.divergence) if isinstance(term, Term) and term.temperature is None else repr(term)


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ConfigError if both models share parameters."""
    mine = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in mine for parameter in teacher.parameters()):
        raise ConfigError(
            "student and teacher share weights, so training one would change the other: load the model twice, or pass "
            "copy.deepcopy(teacher) as the student"
        )


def check_labels(labels: NDArray[np.int64] | None, name: str, classes: int, args: DistillConfig) -> None:
    """Raise ConfigError if the objective needs labels that are missing or are not classes of the models.

    Args:
        labels: those of a dataset called ``name``, or None.
        classes: the number of classes of both models.
    """
    terms = args.objective().all_terms()
    if labels is None:
        if any(isinstance(term, Term) and term.ce_weight for term in terms):
            raise ConfigError(f"{name} has no labels, which the cross-entropy needs: set ce_weight: 0.0")
        for term in terms:
            if term.needs().targets:
                raise ConfigError(f"{name} has no labels, which {described(term)} needs: use another divergence")
    elif int(labels.max()) >= classes:
        raise ConfigError(
            f"{name}: expected labels from 0 to {classes - 1}, the {classes} classes of the student, got "
            f"{int(labels.max())}; use a student with a head for the classes of the data"
        )
