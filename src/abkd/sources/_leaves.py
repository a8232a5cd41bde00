"""The two sources that need nothing beside the run: the data itself, and what the student writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from abkd.data import Example, prompt_of, with_completion
from abkd.sources._streams import coin
from abkd.sources._types import Completion, Generators, Source, Step, Stream
from abkd.term import ORIGINS

if TYPE_CHECKING:
    from abkd.generation import Sampling

_TEACHER_SIDE = ("teacher_input_ids", "teacher_trained")


@dataclass(frozen=True)
class Dataset(Source):
    """The completions of the data: what a run learns from where no source is named."""

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _Reading(privileged)


class _Reading(Stream):
    def __init__(self, privileged: bool) -> None:
        self._left_out = () if privileged else _TEACHER_SIDE

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        return [[self._sequence(row)] for row in prompts]

    def _sequence(self, row: Example) -> Example:
        kept: Any = {name: value for name, value in row.items() if name not in self._left_out}
        return cast(Example, {**kept, "origin": ORIGINS.index("dataset")})


@dataclass(frozen=True)
class StudentSamples(Source):
    """What the student writes to the prompts of the data, with the weights of the moment: on-policy.

    Args:
        temperature: of the sampling; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this probability; 1 is all of them.
        top_k: sample from so many likeliest tokens; 0 is all of them.

    Raises:
        ConfigError: a setting out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """The settings as generation takes them."""
        from abkd.generation import Sampling

        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _Writing(self.sampling, writers, privileged, path)


class _Writing(Stream):
    def __init__(self, sampling: Sampling, writers: Generators, privileged: bool, path: str) -> None:
        self.sampling, self.writers, self.privileged, self.path = sampling, writers, privileged, path
        self._written = self._clipped = self._empty = 0

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        """``num_generations`` sequences for each row, all written at once.

        Asked also without any row: where processes write together, this one has to take part.
        """
        each = self.writers.num_generations
        asked = [ids for row in prompts for ids in [prompt_of(row)] * each]
        seed = int(coin(at, self.path) * 2**31)  # each prompt has random numbers of its own, in whatever process
        written = iter(self.writers.student(asked, self.sampling, seed=seed))
        return [[made for _ in range(each) for made in self._sequences(row, next(written))] for row in prompts]

    def _sequences(self, row: Example, written: Completion) -> list[Example]:
        """One, or none where nothing was written; EOS alone is something."""
        if not written.ids:
            self._empty += 1
            return []
        self._written += 1
        self._clipped += not written.finished
        return [with_completion(row, written.ids, ORIGINS.index("student"), privileged=self.privileged)]

    def logs(self) -> dict[str, float]:
        """``clipped_fraction`` (no EOS) of what was written, and how many ``empty_completions`` were skipped."""
        written, clipped, empty = self._written, self._clipped, self._empty
        self._written = self._clipped = self._empty = 0
        found = {"empty_completions": float(empty)}
        return {**found, "clipped_fraction": clipped / written} if written else found
