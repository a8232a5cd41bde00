"""Helpers for the tests of sources: rows, generators whose text is a function of prompt and seed, and random trees."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from abkd.data import Example
from abkd.origin import Origin
from abkd.schedules import anneal, stages
from abkd.sources import (
    Adaptive,
    Completion,
    Dataset,
    Generators,
    Mix,
    Privileged,
    Replay,
    Source,
    Step,
    Stream,
    StudentSamples,
    TeacherSamples,
    Union,
)

DATASET, TEACHER, STUDENT = range(len(Origin))


def rows(count: int = 4, *, start: int = 0, privileged: bool = True) -> list[Example]:
    """Rows with distinct tokens; the teacher reads 7 and the row's number first."""
    made = []
    for number in range(100 + start, 100 + start + count):
        row = Example(input_ids=[number, 5, 6], trained=[False, False, True], pretrain_ids=[number])
        if privileged:
            row["teacher_input_ids"] = [7, number, number, 5, 6]
            row["teacher_trained"] = [False] * 4 + [True]
        made.append(row)
    return made


class Written:
    """A generator that is a function of its arguments; some completions are clipped, some empty."""

    def __init__(self, least: int = 0) -> None:
        self.least = least
        self.calls: list[tuple[list[list[int]], Any, int]] = []

    def __call__(self, prompts: Sequence[Sequence[int]], sampling: Any, *, seed: int) -> list[Completion]:
        self.calls.append(([list(prompt) for prompt in prompts], sampling, seed))
        found = []
        for place, prompt in enumerate(prompts):
            chance = random.Random(f"{seed}/{place}/{prompt}/{sampling}")
            ids = [chance.randrange(2, 90) for _ in range(chance.randrange(self.least, 5))]
            found.append(Completion(ids, finished=chance.random() < 0.7))
        return found


class TeacherText:
    """A teacher's text: the prompt reversed."""

    def completion(self, source: Any, prompt: Sequence[int]) -> Completion:
        return Completion([*reversed(prompt), 1], finished=True)


def writers(**options: Any) -> Generators:
    return Generators(**{"student": Written(), "teacher_text": TeacherText(), **options})


def step(number: int = 0, *, process: int = 0, seed: int = 0, steps: int = 20) -> Step:
    return Step(number, number / steps, seed, process)


def run(stream: Stream, numbers: Iterable[int], process: int = 0, seed: int = 0) -> list[list[list[Example]]]:
    """The draws of these steps, each with its own rows."""
    return [stream.draw(rows(3, start=3 * n), step(n, process=process, seed=seed)) for n in numbers]


def origins(drawn: list[list[Example]]) -> list[int]:
    return [sequence.get("origin", -1) for group in drawn for sequence in group]


SHARES = st.sampled_from([0.0, 0.3, 1.0, anneal(1.0, 0.0), stages((1, 0.2), (2, 0.9))])
WRITTEN_LEAVES = st.sampled_from([StudentSamples(), StudentSamples(temperature=0.5, top_p=0.9), TeacherSamples()])


def _grown(parts: st.SearchStrategy[Source]) -> st.SearchStrategy[Source]:
    shares = SHARES | st.sampled_from([Adaptive(), Adaptive(start=0.5, step=0.3, tolerance=0.0)])
    return st.builds(Mix, shares, parts, parts) | st.builds(Union, parts, parts) | st.builds(Union, parts, parts, parts)


def _replayed(parts: st.SearchStrategy[Source]) -> st.SearchStrategy[Source]:
    return st.builds(Replay, parts, st.integers(1, 9), SHARES)


WRITTEN = st.recursive(WRITTEN_LEAVES, lambda parts: _grown(parts) | _replayed(parts), max_leaves=4)
OPEN = st.recursive(WRITTEN | st.just(Dataset()), _grown, max_leaves=4)
TREES = st.recursive(OPEN | OPEN.map(Privileged), _grown, max_leaves=3)
