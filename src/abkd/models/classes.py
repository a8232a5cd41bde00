"""Check that two classifiers and the data have the same classes in the same order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from abkd.errors import VocabularyError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NO_NAME = re.compile(r"(label[ _]?)?\d+|n\d{8}", re.IGNORECASE)  # LABEL_3, 3, and numbers of WordNet


class Classes(NamedTuple):
    """The number of classes of a model, and their names in order, if known."""

    number: int
    names: Sequence[str] | None


def check_same_classes(student: Classes, teacher: Classes, class_names: Sequence[str] | None) -> None:
    """Check that class c is the same for student, teacher and data: same number of classes, same names in order.

    The comparison ignores case, ``_`` and ``-``; of several names separated by commas, one match is enough
    (``"tench, Tinca tinca"``). Numbers, ``LABEL_3`` and WordNet's ``n01440764`` do not count as names; they are only
    refused if they are the same ones in another order (folders "0" to "11" are sorted as 0, 1, 10, 11, 2).

    Args:
        class_names: those of the data, if known.

    Raises:
        VocabularyError: with the first class that differs.
    """
    if student.number != teacher.number:
        raise VocabularyError(
            f"the student has {student.number} classes and the teacher {teacher.number}: give the student a head for "
            "the teacher's classes, or use a teacher that was trained on the classes of the data"
        )
    of_student, of_teacher, of_data = map(real_names, (student.names, teacher.names, class_names))
    for who, classes in (("the student", student), ("the teacher", teacher)):
        _compare_numbers(who, classes.names, class_names)
    _compare("the teacher", of_teacher, "the data", of_data)
    _compare("the student", of_student, "the data", of_data)
    _compare("the student", of_student, "the teacher", of_teacher)


def real_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names, or None if they are missing or only numbers."""
    if names is None or all(_NO_NAME.fullmatch(name.strip()) for name in names):
        return None
    return tuple(names)


def names_of(config: PretrainedConfig) -> tuple[str, ...] | None:
    """The class names in a transformers configuration, in the order of its classes; None if they are only numbers."""
    labels = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return real_names([labels[number] for number in sorted(labels)]) if labels else None


def same_name(one: str, other: str) -> bool:
    """Whether two names denote the same class."""
    return bool(_synonyms(one) & _synonyms(other))


def _synonyms(name: str) -> set[str]:
    plain = re.sub(r"[\s_-]+", " ", name.casefold()).strip()
    return {plain, *(part.strip() for part in plain.split(","))} - {""}


def _compare(who: str, names: tuple[str, ...] | None, other: str, others: tuple[str, ...] | None) -> None:
    if names is None or others is None:
        return
    if len(names) != len(others):
        raise VocabularyError(f"{who} has {len(names)} classes and {other} {len(others)}: {_way_out(who)}")
    for number, (mine, theirs) in enumerate(zip(names, others, strict=True)):
        if not same_name(mine, theirs):
            moved = any(same_name(mine, each) for each in others)
            raise VocabularyError(
                f"class {number} is {mine!r} for {who} and {theirs!r} for {other}"
                f"{', which has the same classes in another order' if moved else ''}: {_way_out(who)}"
            )


def _compare_numbers(who: str, names: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
    if names is None or of_data is None or list(names) == list(of_data) or sorted(names) != sorted(of_data):
        return
    if real_names(names) is None:
        number = next(i for i, (mine, theirs) in enumerate(zip(names, of_data, strict=True)) if mine != theirs)
        raise VocabularyError(
            f"class {number} is {names[number]!r} for {who} and {of_data[number]!r} for the data, which has the same "
            f"classes in another order: {_way_out(who)}"
        )


def _way_out(who: str) -> str:
    return (
        f"number the classes of the data as {who} does (folders are numbered in alphabetical order), or, if only the "
        f"names differ, fix id2label in {who}'s config.json (class_names in its abkd.json)"
    )
