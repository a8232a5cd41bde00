"""Teachers: where p comes from (a live model, a cache, an ensemble, or the student itself)."""

from abkd.teachers._ensemble import Ensemble
from abkd.teachers._live import Live, LiveReader
from abkd.teachers._student import EMA, AdapterOff, Snapshot
from abkd.teachers._types import Teacher, TeacherReader
from abkd.teachers._types import (
    TeacherContext as TeacherContext,  # not in __all__: not for recipes
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
