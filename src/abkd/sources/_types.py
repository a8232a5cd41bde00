"""Source interfaces: a ``Source`` value specifies where sequences come from and opens a ``Stream`` for a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.generation import Completion, Sampling
from abkd.schedules import Schedule, values_of
from abkd.stateful import Stateful


class Step(NamedTuple):
    """The position of a run. What is drawn is a function of it, so a resumed run draws the same."""

    step: int
    """Optimizer steps done."""
    progress: float
    """In [0, 1]."""
    seed: int
    process: int
    """0, 1, …: the choice between sources is the same in all processes, draws from a buffer are not."""


class GenerateFn(Protocol):
    """Completions of ``prompts`` (token ids), one each, in their order."""

    def __call__(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int) -> list[Completion]: ...


@dataclass(frozen=True)
class Generators:
    """The generators of a run.

    ``student`` generates with the current weights; ``teacher_text`` looks up what the teacher generated beforehand for
    a ``TeacherSamples`` (raises DataError for a prompt without an answer).
    """

    student: GenerateFn
    teacher_text: Any = None
    num_generations: int = 1
    """How many completions the student generates per prompt."""
    in_any_process: Callable[[bool], bool] = bool
    """Whether a condition holds in at least one process; all of them must call it."""


class Stream(Stateful):
    """A source opened for one run. Its output is a function of its state and the ``Step``.

    Its state consists of JSON values, and differs between processes.
    """

    @abstractmethod
    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        """For each row of the data, the sequences to train on, each with its ``origin``; possibly none."""


class Source:
    """Where the sequences that a run trains on come from: a frozen value, written as its constructor call."""

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        """Open the stream of this source.

        Args:
            privileged: sequences keep the teacher's own prompt.
            path: the place in the tree; two equal sources in one tree draw differently.
        """
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources that it combines."""
        return ()


def stage_sources(source: Source | Schedule) -> tuple[Source, ...]:
    """The source itself, or the distinct sources of the stages.

    Raises:
        ConfigError: something in it is not a source.
    """
    found = tuple(dict.fromkeys(values_of(source)))
    for each in found:
        if not isinstance(each, Source):
            raise ConfigError(
                "source must be a source such as StudentSamples(), or stages((0.3, Dataset()), "
                f"(0.7, StudentSamples())), got {each!r}"
            )
    return found


def walk(source: Source | Schedule) -> Iterator[Source]:
    """All sources in the tree: each before its parts."""
    for found in stage_sources(source):
        yield found
        for part in found.parts:
            yield from walk(part)
