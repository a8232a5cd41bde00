"""Common parts of the streams: random numbers, and a stream that combines others."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.metrics import METRICS
from abkd.sources._types import Step, Stream
from abkd.stateful import Event


def _combined(name: str) -> str:
    """How the parts' values of a metric are combined; third-party sources may log metrics that are not in the table."""
    return METRICS[name].combined if name in METRICS else "weighted"


def coin(at: Step, path: str) -> float:
    """A random number in [0, 1) that is the same in all processes, for decisions that they make together."""
    return random.Random(f"{at.seed}/{at.step}/{path}").random()


def own_chance(at: Step, path: str) -> random.Random:
    """A random generator for this step, place in the tree and process."""
    return random.Random(f"{at.seed}/{at.step}/{path}/{at.process}")


class Combined(Stream):
    """A stream that combines others: it passes events on to them, and holds their state under "0", "1", …"""

    def __init__(self, parts: Iterable[Stream]) -> None:
        self.parts = tuple(parts)
        self._drawn = [0] * len(self.parts)

    def draw_from(self, part: int, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        """Draw from one of the parts."""
        drawn = self.parts[part].draw(prompts, at)
        self._drawn[part] += sum(map(len, drawn))
        return drawn

    def observe(self, event: Event) -> None:
        for part in self.parts:
            part.observe(event)

    def state_dict(self) -> dict[str, object]:
        return {str(place): part.state_dict() for place, part in enumerate(self.parts)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        for place, part in enumerate(self.parts):
            part.load_state_dict(entry(state, str(place)))

    def logs(self) -> dict[str, float]:
        """The parts' metrics: sums, plain means, or means weighted by the number of sequences drawn from each part."""
        weights, self._drawn = self._drawn, [0] * len(self.parts)
        sums: dict[str, float] = {}
        totals: dict[str, float] = {}
        for part, weight in zip(self.parts, weights, strict=True):
            for name, value in part.logs().items():
                share = weight if _combined(name) == "weighted" else 1
                sums[name] = sums.get(name, 0.0) + share * value
                totals[name] = totals.get(name, 0.0) + share
        divisors = {name: 1 if _combined(name) == "summed" else total for name, total in totals.items()}
        return {name: sums[name] / divisors[name] for name in sums if totals[name]}


def entry(state: Mapping[str, object], name: str) -> Any:
    """``state[name]``.

    Raises:
        ConfigError: the state is from another source.
    """
    if name not in state:
        raise ConfigError("the checkpoint is from another source: resume with the source the run was started with")
    return state[name]


def without_text(example: Example) -> Example:
    """The sequence without the plain text of its row."""
    return cast(Example, {name: value for name, value in example.items() if name != "pretrain_ids"})
