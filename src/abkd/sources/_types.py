"""What a source is: a value that says who writes the sequences, and the stream that it opens for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.generation import Completion
from abkd.schedules import Schedule, values_of


class Step(NamedTuple):
    """Where a run is when sequences are wanted; what is drawn is a function of it, so a resumed run draws the same."""

    step: int
    """Optimizer steps done."""
    progress: float
    """In [0, 1]."""
    seed: int
    process: int
    """0, 1, …: coins are tossed alike in all processes; from what it keeps, each draws for itself."""


class GenerateFn(Protocol):
    """Completions of prompts, one each: ``prompts`` of token ids, in their order."""

    def __call__(self, prompts: Sequence[Sequence[int]], sampling: Any, *, seed: int) -> list[Completion]: ...


@dataclass(frozen=True)
class Generators:
    """Who can write in this run.

    ``student`` writes with the weights of the moment; ``teacher_text`` finds what the teacher has written beforehand
    for a ``TeacherSamples`` (raises DataError for a prompt that it did not answer).
    """

    student: GenerateFn
    teacher_text: Any = None
    num_generations: int = 1
    """How many completions the student writes to a prompt."""
    in_any_process: Callable[[bool], bool] = bool
    """Whether this is so in at least one process; all of them ask at the same time."""


class Stream:
    """A source at work in one run. What it does is a function of its state and the ``Step``."""

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        """For each row of the data the sequences to learn from, each with its ``origin``; none where nothing came."""
        raise NotImplementedError

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Told after each evaluation (``eval_loss`` among the metrics)."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON takes it."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""

    def logs(self) -> dict[str, float]:
        """Numbers about what was drawn since they were asked for last."""
        return {}


class Source:
    """Who writes the sequences that a run learns from: a frozen value, written as its constructor call."""

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        """The stream of this source.

        Args:
            privileged: sequences keep the teacher's own prompt.
            path: the place in the tree; two equal sources in one tree draw differently.
        """
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources it is made of."""
        return ()


def stage_sources(source: Source | Schedule) -> tuple[Source, ...]:
    """The source itself, or the different ones among the stages.

    Raises:
        ConfigError: something in it is not a source.
    """
    found = tuple(dict.fromkeys(values_of(source)))
    for each in found:
        if not isinstance(each, Source):
            raise ConfigError(
                "source must be one, such as StudentSamples(), or stages((0.3, Dataset()), (0.7, StudentSamples())), "
                f"but it is {each!r}"
            )
    return found


def walk(source: Source | Schedule) -> Iterator[Source]:
    """All sources in the tree: each before its parts."""
    for found in stage_sources(source):
        yield found
        for part in found.parts:
            yield from walk(part)
