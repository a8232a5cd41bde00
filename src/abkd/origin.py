"""The origin of a sequence: which model, if any, generated its completion."""

from __future__ import annotations

from enum import StrEnum


class Origin(StrEnum):
    """Who wrote a sequence; equal to the string of the same name."""

    DATASET = "dataset"
    TEACHER = "teacher"
    STUDENT = "student"

    @property
    def code(self) -> int:
        """The number that stands for it in ``Batch.origin``."""
        return list(Origin).index(self)

    def __repr__(self) -> str:
        return repr(self.value)
