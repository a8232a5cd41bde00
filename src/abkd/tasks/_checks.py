"""Checks that the tasks share: how many teachers there are, what a cache knows, and whose weights are whose."""

from __future__ import annotations

from typing import Any

from torch import nn

from abkd.config import DistillConfig
from abkd.errors import ConfigError
from abkd.setting_rules import teacher_problem
from abkd.teachers import TeacherReader


def given_teachers(teacher: Any, args: DistillConfig) -> list[Any]:
    """The teachers that were given, as many as this kind of teacher takes; none where only the labels teach.

    Raises:
        ConfigError: too few or too many.
    """
    given = [] if teacher is None else list(teacher) if type(teacher) in (list, tuple) else [teacher]
    labels_alone = not args.objective().ever_needs_teacher()
    if labels_alone and args.teacher_model_server_url:
        return [each for each in given if isinstance(each, str)]  # at most its name at the server
    problem = teacher_problem(args, len(given))
    if problem is not None:
        raise ConfigError(problem)
    return given


def check_full_distribution(reader: TeacherReader | None, args: DistillConfig) -> None:
    """Raise ConfigError where whole distributions are looked at, and a cache has a part of them only."""
    if reader is None or reader.exact:
        return
    terms = args.objective().all_terms()
    divergences: list[Any] = [term.divergence for term in terms]
    looking = [term.row_weight for term in terms if term.row_weight is not None]
    looking += [divergence for divergence in divergences if divergence.needs_full_distribution]
    if looking:
        raise ConfigError(
            f"{looking[0]!r} looks at whole distributions, and {args.teacher!r} knows the likeliest classes only: take "
            "teacher: HiddenCache(), which knows all, or Live()"
        )


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ConfigError where both are made of the same weights."""
    mine = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in mine for parameter in teacher.parameters()):
        raise ConfigError(
            "student and teacher share weights, so training the one would change the other: load the model twice, or "
            "give copy.deepcopy(teacher) as the student"
        )
