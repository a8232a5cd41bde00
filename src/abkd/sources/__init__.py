"""Sources of the sequences that a run trains on, as composable values.

    Mix(0.5, Replay(StudentSamples(), capacity=1000), Dataset())

A source is a frozen value; opened for a run it is a stream, whose state is saved in checkpoints.
"""

from abkd.sources._bar import writing_bar as writing_bar
from abkd.sources._combine import Adaptive, Mix, Privileged, Union
from abkd.sources._describe import fingerprint, tree
from abkd.sources._leaves import Dataset, StudentSamples
from abkd.sources._open import (
    is_privileged,
    known_sequences,
    needs_completions,
    needs_generation,
    needs_teacher_text,
    open_source,
    privileged_context,
)
from abkd.sources._replay import Replay
from abkd.sources._server import Server as Server
from abkd.sources._store import Store as Store
from abkd.sources._teacher_samples import TeacherSamples
from abkd.sources._teacher_text import TeacherText as TeacherText
from abkd.sources._teacher_text import TeacherWriter as TeacherWriter
from abkd.sources._teacher_text import ensure_teacher_text as ensure_teacher_text
from abkd.sources._teacher_text import uses as uses
from abkd.sources._teacher_text import write_with as write_with
from abkd.sources._types import Completion, Source, Step, Stream, walk
from abkd.sources._types import Generators as Generators  # not in __all__: not for recipes
from abkd.sources._types import stage_sources as stage_sources

__all__ = [
    "Adaptive",
    "Completion",
    "Dataset",
    "Mix",
    "Privileged",
    "Replay",
    "Source",
    "Step",
    "Stream",
    "StudentSamples",
    "TeacherSamples",
    "Union",
    "fingerprint",
    "is_privileged",
    "known_sequences",
    "needs_completions",
    "needs_generation",
    "needs_teacher_text",
    "open_source",
    "privileged_context",
    "tree",
    "walk",
]
