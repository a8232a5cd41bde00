"""Validation of settings, for recipes and for Python: ranges, settings of other tasks, and invalid combinations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from abkd import registry
from abkd.data.images.augmentation import Augmentation
from abkd.errors import ConfigError, shown
from abkd.generation import Sampling, settle
from abkd.outside import Unloaded
from abkd.schedules import is_number, values_of
from abkd.sequence_rules import check_sequences, check_written_for

if TYPE_CHECKING:
    from abkd.objective import Objective
    from abkd.settings import Settings
    from abkd.teachers import Teacher

OF_TERM = {"divergence", "kd_ratio", "ce_weight", "kd_weight", "row_weight"}
"""The settings that a list of terms replaces."""

Ranges = Mapping[str, tuple[Callable[[float], bool], str]]
"""By setting: whether a value is valid, and the valid values in words."""

_ABOVE_ZERO: tuple[Callable[[float], bool], str] = (lambda x: x > 0, "> 0")
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, ">= 0")
_WEIGHT: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x <= 1e30, ">= 0 and <= 1e30")
_AT_LEAST_ONE: tuple[Callable[[float], bool], str] = (lambda x: x >= 1, ">= 1")
_RANGES: Ranges = {
    "kd_ratio": (lambda x: 0 <= x <= 1, "between 0 and 1 (the loss is (1 - kd_ratio)·CE + kd_ratio·D)"),
    "kd_temperature": (lambda x: 1e-4 <= x <= 1e6, ">= 0.0001 and <= 1000000"),
    "ce_weight": _WEIGHT,
    "kd_weight": _WEIGHT,
    "lm_coef": _WEIGHT,
    "max_length": (lambda x: x >= 2, ">= 2 (a token is predicted from the ones before it)"),
    "memory_budget_mb": _ABOVE_ZERO,
    "image_size": _AT_LEAST_ONE,
    "lr_decay": (lambda x: 0 < x <= 1, "> 0 and <= 1"),
    "visual_prompt_length": _NOT_NEGATIVE,
    "visual_prompt_depth": _NOT_NEGATIVE,
    "lmbda": (lambda x: 0 <= x <= 1, "between 0 (the student generates no batch) and 1 (it generates every batch)"),
    "max_completion_length": _AT_LEAST_ONE,
    "num_generations": _AT_LEAST_ONE,
    "eval_samples": _NOT_NEGATIVE,
}


def problems(settings: Settings, given: set[str]) -> list[str]:
    """See :meth:`Settings.problems`; combinations are checked only if every single value is valid."""
    known = registry.tasks()
    if settings.task not in known:
        return [f"task must be one of {', '.join(known)}, got {shown(settings.task)}"]
    found = [*out_of_range(vars(settings), _RANGES), *_doubled(settings, given)]
    others = _of_other_tasks(settings, given)
    if found or is_unloaded(settings):
        return found or others
    return [*others, *_augmentation(settings), *_combinations(settings)]


def is_unloaded(settings: Settings) -> bool:
    """Whether a component was read without its code, so that nothing can be said about combinations with it."""
    return any(isinstance(part, Unloaded) for part in (*vars(settings).values(), *(settings.augmentation or ())))


def teacher_problem(settings: Settings, number: int) -> str | None:
    """Why the teacher cannot be made of ``number`` models in teacher_model_name_or_path; None if it can.

    An objective with labels only needs no teacher, though one may still generate text through a server.
    """
    teacher, (least, most) = settings.teacher, settings.teacher.needs
    if number == 0 and least:
        if not settings.objective().ever_needs_teacher():
            return None
        if least == 1:
            return "teacher_model_name_or_path is missing: set it to the teacher, a directory or a hub name"
        return f"teacher_model_name_or_path is missing: {teacher!r} needs at least {least} models; set it to [one, two]"
    if number < least:
        return f"teacher: {teacher!r} needs at least {least} models, got {number}; set teacher_model_name_or_path"
    if most is not None and number > most:
        way_out = (
            "for the mean of several, set teacher: Ensemble()" if most == 1 else "remove teacher_model_name_or_path"
        )
        return f"teacher: {teacher!r} takes {most} model{'s' * (most != 1)}, got {number}; {way_out}"
    return None


def raise_first(found: Iterable[str]) -> None:
    """Raise ConfigError with the first problem, if there is one."""
    for problem in found:
        raise ConfigError(problem)


def out_of_range(values: Mapping[str, object], ranges: Ranges) -> list[str]:
    """One sentence for each value out of its range, including the values of schedules."""
    return [
        f"{name} must be {words}, got {shown(values[name])}"
        for name, (fits, words) in ranges.items()
        if not all(fits(value) for value in values_of(values.get(name)) if isinstance(value, int | float))
    ]


def _doubled(settings: Settings, given: set[str]) -> list[str]:
    """One sentence for each pair of settings that exclude each other."""
    found = []
    weights = [name for name in ("ce_weight", "kd_weight") if name in given]
    if settings.kd_ratio is not None and weights:
        ratio, kept = settings.kd_ratio, " and ".join(weights)
        if (settings.ce_weight, settings.kd_weight) != (1 - ratio, ratio):
            found.append(f"kd_ratio is the short form of ce_weight and kd_weight: keep either kd_ratio or {kept}")
    if settings.terms is not None and OF_TERM & given:
        others = ", ".join(sorted(OF_TERM & given))
        found.append(f"each of the terms has its own divergence and weights: keep either terms or {others}")
    if "source" in given and settings.short_source() not in (None, settings.source):
        found.append("lmbda and seq_kd are short forms of source: keep either them or source")
    return found


def fields_of_others(task: str) -> set[str]:
    """The settings and recipe keys that apply only to other tasks."""
    known = registry.tasks()
    return {name for each in known.values() for name in each.fields} - known[task].fields


def _of_other_tasks(settings: Settings, given: set[str]) -> list[str]:
    """One sentence for each given setting that does not apply to the task."""
    names = sorted(fields_of_others(settings.task) & given)
    names = [name for name in names if getattr(settings, name, True) not in (False, 0)]
    return [f"{name} does not apply to the task {settings.task}; remove it, or set another task" for name in names]


def _check_features(objective: Objective, teacher: Teacher) -> None:
    """Raise ConfigError if a term compares a feature that this kind of teacher does not have."""
    needed = objective.ever_needs().teacher_features
    if teacher.features is not None and (missing := sorted(set(needed) - teacher.features)):
        known = f"only {', '.join(sorted(teacher.features))}" if teacher.features else "no features"
        raise ConfigError(f"the terms compare the teacher's {missing[0]}, and {teacher!r} has {known}: use Live()")


def _augmentation(settings: Settings) -> list[str]:
    parts = settings.augmentation
    if parts is None or all(isinstance(part, Augmentation) for part in parts):
        return []
    return [f"augmentation must be a list such as [RandomCrop(4), HorizontalFlip()], got {parts!r}"]


def _combinations(settings: Settings) -> list[str]:
    """The first problem with the objective, the source or the milestones."""
    source = settings.short_source() or settings.source
    try:
        objective = settings.objective()
        check_sequences(source, settings.teacher, packing=settings.packing, eval_samples=settings.eval_samples)
        check_written_for(objective, source)
        _check_features(objective, settings.teacher)
        settle(Sampling(), settings.generation_kwargs)
    except ConfigError as error:
        return [str(error)]
    after = settings.lr_milestones or []
    if not all(is_number(epoch) and epoch > 0 for epoch in after) or list(after) != sorted(set(after)):
        return [f"lr_milestones must be increasing epochs > 0, such as [150, 180, 210], got {after!r}"]
    return []
