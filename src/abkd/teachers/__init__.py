"""Where the teacher's rows come from."""

from abkd.teachers._ensemble import Ensemble
from abkd.teachers._live import Live, LiveReader
from abkd.teachers._student import EMA, AdapterOff, Snapshot
from abkd.teachers._types import Teacher, TeacherReader
from abkd.teachers._types import (
    TeacherContext as TeacherContext,  # nothing that a recipe writes: not among the components below
)
from abkd.teachers.caches import HiddenCache, TopKCache, identity

__all__ = [
    "EMA",
    "AdapterOff",
    "Ensemble",
    "HiddenCache",
    "Live",
    "LiveReader",
    "Snapshot",
    "Teacher",
    "TeacherReader",
    "TopKCache",
    "identity",
]
