"""Whether the source of the sequences, the teacher and the terms of an objective fit each other."""

from __future__ import annotations

from typing import Any

from abkd.errors import ConfigError
from abkd.objective import Objective
from abkd.schedules import at, is_number, moments_of, values_of
from abkd.sources import (
    Dataset,
    Mix,
    Source,
    StudentSamples,
    TeacherSamples,
    needs_generation,
    needs_teacher_text,
    walk,
)
from abkd.teachers import Teacher


def short_form(lmbda: float | None, seq_kd: bool) -> Source:
    """The source that ``lmbda`` (the share of batches that the student writes) and ``seq_kd`` stand for.

    Raises:
        ConfigError: ``lmbda`` is no share.
    """
    base = TeacherSamples() if seq_kd else Dataset()
    share = 0.0 if lmbda is None else lmbda
    if not (is_number(share) and 0 <= share <= 1):
        raise ConfigError(f"lmbda is the share of batches that the student writes, from 0 to 1, but it is {share!r}")
    return base if share == 0 else StudentSamples() if share == 1 else Mix(float(share), StudentSamples(), base)


def check_sequences(source: Any, teacher: Any, *, packing: bool, eval_samples: int) -> None:
    """Who writes and who is asked must fit each other.

    Raises:
        ConfigError: they do not.
    """
    if not all(isinstance(value, Source) for value in values_of(source)):
        raise ConfigError(f"source must be one, such as StudentSamples(), but it is {source!r}")
    if not isinstance(teacher, Teacher):
        raise ConfigError(f"teacher must be one, such as Live() or TopKCache(k=64), but it is {teacher!r}")
    if packing and source != Dataset():
        raise ConfigError("packing joins rows of the data beforehand, and here others write: set packing: false")
    if teacher.cached and (needs_generation(source) or eval_samples):
        raise ConfigError(
            f"{teacher!r} holds what the teacher said about text that was there already, and the student's is not yet "
            "written: set teacher: Live(), or take a source without StudentSamples (and eval_samples: 0)"
        )


def check_streaming(source: Any, teacher: Any, *, max_steps: int, packing: bool, group_by_length: bool) -> None:
    """Rows that are read when their turn comes have no number, and lengths that nobody knows.

    Raises:
        ConfigError: something needs them.
    """
    if max_steps <= 0:
        raise ConfigError("streaming needs max_steps: how many rows there are is not known before they are read")
    for name, given in (("packing", packing), ("group_by_length", group_by_length)):
        if given:
            raise ConfigError(f"{name} looks at all rows beforehand, and streaming at none: set one of them to false")
    if needs_teacher_text(source):
        raise ConfigError(f"{source!r} is written to all prompts beforehand: set streaming: false, or another source")
    if teacher.cached:
        raise ConfigError(f"{teacher!r} is made of all rows beforehand: set streaming: false, or teacher: Live()")


def check_written_for(objective: Objective, source: Any) -> None:
    """Raise ConfigError where, at some time of the run, no term is about any text that the source gives then."""
    writers = {"dataset": Dataset, "teacher": TeacherSamples, "student": StudentSamples}
    for progress in sorted({*objective.moments(), *moments_of(source)} - {1.0}):
        wanted = {term.origin for term in objective.at(progress)}
        now = [*walk(at(source, progress))]
        there = {name for name, kind in writers.items() if any(isinstance(each, kind) for each in now)}
        if None not in wanted and not wanted & there:
            asked, given = (" and the ".join(sorted(map(str, names))) for names in (wanted, there))
            raise ConfigError(
                f"after {progress:.0%} of the run the terms are about text of the {asked}, and the source gives text "
                f"of the {given}: nothing would be learned"
            )
