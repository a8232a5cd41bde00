"""Opening the source of a run, and finding out what it needs (generation, teacher text, completions)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.generation import Sampling
from abkd.origin import Origin
from abkd.schedules import Schedule, at
from abkd.sources._combine import Mix, Privileged, contexts
from abkd.sources._leaves import Dataset, StudentSamples
from abkd.sources._streams import Combined, without_text
from abkd.sources._teacher_samples import TeacherSamples
from abkd.sources._teacher_text import TeacherText
from abkd.sources._types import Completion, Generators, Source, Step, Stream, stage_sources, walk


def open_source(source: Source | Schedule, writers: Generators) -> Stream:
    """Open the stream of a source, or of its stages (all are opened; each keeps its state while others draw).

    A row's plain text is returned once, with the first of its sequences, whatever their origin. For the sequences drawn
    since the last call, the logs report ``on_policy_fraction``, the share that the student generated, and
    ``completion_length``, the mean number of tokens of those that a model generated.

    Raises:
        ConfigError: something in it is not a source, or the teacher would have several contexts.
    """
    contexts(stage_sources(source))
    return _RootStream(source, writers)


class _RootStream(Combined):
    def __init__(self, source: Source | Schedule, writers: Generators) -> None:
        self.source, self._stages = source, stage_sources(source)
        alone = len(self._stages) == 1
        paths = ["source" if alone else f"source/{place}" for place in range(len(self._stages))]
        super().__init__(stage.open(writers, path=path) for stage, path in zip(self._stages, paths, strict=True))
        self._sequences, self._lengths = [0] * len(Origin), 0

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        drawn = self.draw_from(self._stages.index(_now(self.source, at.progress)), prompts, at)
        for one in (one for group in drawn for one in group):
            origin = one.get("origin", 0)
            self._sequences[origin] += 1
            self._lengths += sum(one["trained"]) * (origin != Origin.DATASET.code)
        return [_with_text_of(row, group) for row, group in zip(prompts, drawn, strict=True)]

    def logs(self) -> dict[str, float]:
        found, counts = super().logs(), self._sequences
        written = sum(counts) - counts[Origin.DATASET.code]
        if sum(counts):
            found["on_policy_fraction"] = counts[Origin.STUDENT.code] / sum(counts)
        if written:
            found["completion_length"] = self._lengths / written
        self._sequences, self._lengths = [0] * len(Origin), 0
        return found


def _with_text_of(row: Example, sequences: Sequence[Example]) -> list[Example]:
    bare = [without_text(one) for one in sequences]
    for one in bare[:1]:
        if "pretrain_ids" in row:
            one["pretrain_ids"] = row["pretrain_ids"]
    return bare


def _now(source: Source | Schedule, progress: float) -> Source:
    return at(source, progress)


def _drawable(source: Source | Schedule) -> Iterator[Source]:
    """As :func:`walk`, without the parts of a Mix that are never drawn."""
    for found in stage_sources(source):
        yield found
        share = found.share if isinstance(found, Mix) else None
        parts = found.parts[:1] if share == 1 else found.parts[1:] if share == 0 else found.parts
        for part in parts:
            yield from _drawable(part)


def known_sequences(
    source: Source | Schedule, rows: Iterable[Example], teacher_text: TeacherText | None = None
) -> Iterator[Example]:
    """Every sequence that is known before a run starts: the rows as ``Dataset()`` gives them, and the teacher's text.

    A cache of the teacher must contain these. (The student's samples do not exist yet.)
    """
    at_start = Step(0, 0.0, 0, 0)
    writers = Generators(student=_no_student, teacher_text=teacher_text)
    streams = [leaf.open(writers, privileged=privileged) for leaf, privileged in dict.fromkeys(_leaves(source))]
    for row in rows:
        for stream in streams:
            yield from stream.draw([row], at_start)[0]


def _leaves(source: Source | Schedule, *, privileged: bool = False) -> Iterator[tuple[Source, bool]]:
    """The sources that need no student, each with whether it is inside a ``Privileged``."""
    for found in stage_sources(source):
        if not found.parts and not isinstance(found, StudentSamples):
            yield found, privileged
        for part in found.parts:
            yield from _leaves(part, privileged=privileged or isinstance(found, Privileged))


def _no_student(prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
    raise ConfigError("the student cannot generate before a run starts")


def needs_generation(source: Source | Schedule) -> bool:
    """Whether the student may have to generate."""
    return any(isinstance(part, StudentSamples) for part in _drawable(source))


def needs_teacher_text(source: Source | Schedule) -> bool:
    """Whether the run needs text that the teacher generated beforehand."""
    return any(isinstance(part, TeacherSamples) for part in walk(source))


def needs_completions(source: Source | Schedule) -> bool:
    """Whether the run may train on the completions of the data; otherwise prompts are enough."""
    return any(isinstance(part, Dataset) for part in _drawable(source))


def is_privileged(source: Source | Schedule) -> bool:
    """Whether the teacher reads more than the student."""
    return any(isinstance(part, Privileged) for part in walk(source))


def privileged_context(source: Source | Schedule) -> str | None:
    """The text that the teacher reads before every prompt; None if there is none, or if each row has its own."""
    return next(iter(contexts(stage_sources(source))), None)
