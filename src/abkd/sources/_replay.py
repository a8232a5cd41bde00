"""Replay of generated sequences."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.schedules import Schedule, at
from abkd.sources._combine import check_parts, check_probability, open_parts
from abkd.sources._leaves import Dataset
from abkd.sources._streams import Combined, coin, entry, own_chance, without_text
from abkd.sources._types import Generators, Source, Step, Stream, walk


@dataclass(frozen=True)
class Replay(Source):
    """A replay buffer for the sequences of ``source``: generating them costs far more than training on them.

    Each process keeps the last ``capacity`` sequences. Until the buffer is full, and afterwards with probability
    ``fresh`` at each step, ``source`` generates new ones; otherwise as many sequences as there are prompts are drawn
    from the buffer, regardless of their prompts (DistiLLM, arXiv 2402.03898, with a decreasing ``fresh``:
    ``anneal(1.0, 0.0)``).

    Raises:
        ConfigError: a capacity below 1, ``fresh`` outside [0, 1], or a source with ``Dataset()`` in it.
    """

    source: Source
    capacity: int = 1000
    fresh: float | Schedule = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.capacity, int) or isinstance(self.capacity, bool) or self.capacity < 1:
            raise ConfigError(f"Replay: capacity must be an integer >= 1, got {self.capacity!r}")
        check_probability("Replay", "fresh", self.fresh)
        check_parts("Replay", self.parts)
        if any(isinstance(part, Dataset) for part in walk(self.source)):
            raise ConfigError(
                "Replay is for generated sequences, and Dataset() needs none: put it next to Replay, "
                "as Mix(0.5, Replay(StudentSamples()), Dataset())"
            )

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.source,)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _ReplayStream(self, open_parts(self, writers, privileged, path), writers, path)


class _ReplayStream(Combined):
    def __init__(self, source: Replay, parts: Sequence[Stream], writers: Generators, path: str) -> None:
        super().__init__(parts)
        self.fresh, self.writers, self.path = source.fresh, writers, path
        self.kept: deque[Example] = deque(maxlen=source.capacity)
        self._given = self._again = 0

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        # processes that generate together must decide together, and one may have fewer sequences than another
        filling = self.writers.in_any_process(len(self.kept) < cast(int, self.kept.maxlen))
        drawn = self._generated(prompts, at) if filling or self._wants_fresh(at) else self._replayed(prompts, at)
        self._given += sum(map(len, drawn))
        return drawn

    def _wants_fresh(self, step: Step) -> bool:
        return coin(step, self.path) < at(self.fresh, step.progress)

    def _generated(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        drawn = self.draw_from(0, prompts, at)
        self.kept.extend(without_text(one) for group in drawn for one in group)
        return drawn

    def _replayed(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        kept, chance = list(self.kept), own_chance(at, self.path)
        few = len(kept) < len(prompts)
        chosen = chance.choices(kept, k=len(prompts)) if few else chance.sample(kept, len(prompts))
        self._again += len(chosen)
        return [[one] for one in chosen]

    def state_dict(self) -> dict[str, object]:
        return {**super().state_dict(), "kept": list(self.kept)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        super().load_state_dict(state)
        self.kept = deque(entry(state, "kept"), maxlen=self.kept.maxlen)

    def logs(self) -> dict[str, float]:
        """``replay_size``, the sequences kept, and ``replayed_fraction`` of the sequences drawn."""
        found = {**super().logs(), "replay_size": float(len(self.kept))}
        if self._given:
            found["replayed_fraction"] = self._again / self._given
        self._given = self._again = 0
        return found
