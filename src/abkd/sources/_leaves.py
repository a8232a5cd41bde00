"""The two sources that need only the run itself: the data, and the student's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from abkd.data import Example, prompt_of, with_completion
from abkd.origin import Origin
from abkd.sources._streams import coin
from abkd.sources._types import Completion, Generators, Source, Step, Stream

if TYPE_CHECKING:
    from abkd.generation import Sampling

_TEACHER_SIDE = ("teacher_input_ids", "teacher_trained")


@dataclass(frozen=True)
class Dataset(Source):
    """The completions of the data: the default source."""

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _DatasetStream(privileged)


class _DatasetStream(Stream):
    def __init__(self, privileged: bool) -> None:
        self._left_out = () if privileged else _TEACHER_SIDE

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        return [[self._sequence(row)] for row in prompts]

    def _sequence(self, row: Example) -> Example:
        kept = {name: value for name, value in row.items() if name not in self._left_out}
        return cast(Example, {**kept, "origin": Origin.DATASET.code})


@dataclass(frozen=True)
class StudentSamples(Source):
    """On-policy samples: completions that the student generates for the prompts of the data, with its current weights.

    Args:
        temperature: sampling temperature; 0 is greedy decoding.
        top_p: sample from the most probable tokens that together have this probability; 1 is all of them.
        top_k: sample from this many most probable tokens; 0 is all of them.

    Raises:
        ConfigError: a setting outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """The settings for generation."""
        from abkd.generation import Sampling

        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _StudentStream(self.sampling, writers, privileged, path)


class _StudentStream(Stream):
    def __init__(self, sampling: Sampling, writers: Generators, privileged: bool, path: str) -> None:
        self.sampling, self.writers, self.privileged, self.path = sampling, writers, privileged, path
        self._written = self._clipped = self._empty = 0

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        """``num_generations`` sequences for each row, all generated in one call.

        Also called without rows: if processes generate together, every one of them has to take part.
        """
        each = self.writers.num_generations
        repeated = [ids for row in prompts for ids in [prompt_of(row)] * each]
        seed = int(coin(at, self.path) * 2**31)  # each prompt has its own random numbers, the same in every process
        written = iter(self.writers.student(repeated, self.sampling, seed=seed))
        return [[made for _ in range(each) for made in self._sequences(row, next(written))] for row in prompts]

    def _sequences(self, row: Example, written: Completion) -> list[Example]:
        """One sequence, or none if the completion has no token; EOS alone is a completion."""
        if not written.ids:
            self._empty += 1
            return []
        self._written += 1
        self._clipped += not written.finished
        return [with_completion(row, written.ids, Origin.STUDENT.code, privileged=self.privileged)]

    def logs(self) -> dict[str, float]:
        """``clipped_fraction``: completions without EOS; ``empty_completions``: how many were skipped."""
        written, clipped, empty = self._written, self._clipped, self._empty
        self._written = self._clipped = self._empty = 0
        found = {"empty_completions": float(empty)}
        return {**found, "clipped_fraction": clipped / written} if written else found
