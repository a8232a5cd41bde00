"""Summary figures of the measurements of ``benchmarks.sources``: medians over the rounds, with the extremes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, NamedTuple

from benchmarks._sources_contestants import (
    CACHES,
    CONTESTANTS,
    FRESH,
    LIVE,
    ON_POLICY,
    REPLAY,
)
from benchmarks._training_report import MIB, memory_mb, steps_of

EPOCHS, STEPS_OF_EPOCH = 10, 40  # the demo's 320 rows, 8 per step
Line = Mapping[str, Any]


class Spread(NamedTuple):
    """A median, and the minimum and maximum over the rounds."""

    value: float
    low: float
    high: float


class Step(NamedTuple):
    """A step of one contestant; fields that were not measured are None."""

    contestant: str
    seconds: Spread | None
    ms_per_token: float | None
    ms_per_answer_token: float | None
    peak_mb: float | None
    above_mb: float | None
    bytes_per_token: float


class Cache(NamedTuple):
    """The cost of building a cache: per trained token, and once."""

    contestant: str
    build_ms_per_token: Spread
    once_s: float
    bytes_per_token: float
    head_mb: float


class Epochs(NamedTuple):
    """Computed time of ``EPOCHS`` epochs of the demo's rows; from epoch ``pays_from`` on, faster than the live one."""

    contestant: str
    build_s: float
    steps_s: float
    of_live: float | None
    pays_from: int | None

    @property
    def total_s(self) -> float:
        """Build and steps together."""
        return self.build_s + self.steps_s


class Training(NamedTuple):
    """A short training run that was measured."""

    contestant: str
    epochs: int
    steps: int
    computed_s: float | None
    measured_s: float
    before: Mapping[str, float]
    after: Mapping[str, float]


class Writing(NamedTuple):
    """The cost of the student's generation: seconds of a step that generates, and of one that replays."""

    fresh: Spread
    writing_s: float
    replayed: float | None
    ms_per_token: float
    completion_length: float
    tokens_per_second: Spread
    expected: float | None
    """Of a step of ``Replay(fresh=FRESH)``: the average of both kinds of step, weighted by ``FRESH``."""
    measured: Spread
    """The mean step of the measured replay, at the share of fresh steps that was drawn."""
    measured_fresh: float


@dataclass(frozen=True)
class Figures:
    """All figures."""

    steps: list[Step]
    caches: list[Cache]
    epochs: list[Epochs]
    trainings: list[Training]
    writing: Writing | None


def figures(lines: Sequence[Line]) -> Figures:
    """Compute the figures from the lines of the record."""
    timed, written = results(lines, "time"), results(lines, "write")
    memory = {line["job"]["contestant"]: line["result"] for line in lines if line["job"]["kind"] == "memory"}
    caches = [_cache(name, timed) for name in CACHES if any(name in result["built"] for result in timed)]
    steps = [_step(name, timed, memory.get(name), caches) for name in CONTESTANTS]
    seconds = {step.contestant: step.seconds.value for step in steps if step.seconds is not None}
    costs = _Costs(seconds, {each.contestant: each for each in caches}, _tokens(timed, "trained"))
    return Figures(
        steps=steps,
        caches=caches,
        epochs=[_epochs(name, costs) for name in (LIVE, *CACHES) if name in seconds],
        trainings=[_training(line, costs) for line in lines if line["job"]["kind"] == "train"],
        writing=_writing(written) if written else None,
    )


def results(lines: Sequence[Line], kind: str) -> list[Any]:
    """The results of the jobs of a kind."""
    return [line["result"] for line in lines if line["job"]["kind"] == kind]


def _tokens(timed: Sequence[Line], what: str) -> float:
    """Mean over the counted steps: all but the first."""
    return fmean(batch[what] for batch in timed[0]["counts"][1:]) if timed else 0.0


def _spread(rounds: Sequence[Sequence[float]]) -> Spread:
    """The mean over the steps of each step's median over the rounds; with the smallest and largest mean of a round."""
    means = [fmean(each) for each in rounds]
    return Spread(fmean(median(step) for step in zip(*rounds, strict=True)), min(means), max(means))


def over_rounds(values: Sequence[float]) -> Spread:
    """The spread of one value per round."""
    return Spread(median(values), min(values), max(values))


def _step(name: str, timed: Sequence[Line], memory: Line | None, caches: Sequence[Cache]) -> Step:
    rounds = steps_of(timed, name)
    seconds = _spread(rounds) if rounds else None
    per = [None if seconds is None else 1e3 * seconds.value / _tokens(timed, what) for what in ("all", "trained")]
    peak, above = (None, None) if memory is None else memory_mb(memory)
    stored = sum(each.bytes_per_token for each in caches if each.contestant == name)
    return Step(name, seconds, per[0], per[1], peak, above, stored)


def _cache(name: str, timed: Sequence[Line]) -> Cache:
    built = [result["built"][name] for result in timed if name in result["built"]]
    return Cache(
        name,
        over_rounds([1e3 * each["per_token"] for each in built]),
        median(each["once"] for each in built),
        built[0]["bytes_per_token"],
        built[0]["head_bytes"] / MIB,
    )


@dataclass(frozen=True)
class _Costs:
    """Seconds of a step, cost of building a cache, trained tokens of a step."""

    step: Mapping[str, float]
    cache: Mapping[str, Cache]
    tokens: float

    def build(self, name: str, steps: int) -> float:
        """Seconds to build a cache of the rows of ``steps`` steps."""
        cache = self.cache.get(name)
        return 0.0 if cache is None else cache.once_s + 1e-3 * cache.build_ms_per_token.value * self.tokens * steps


def _epochs(name: str, costs: _Costs) -> Epochs:
    build, step, live = costs.build(name, STEPS_OF_EPOCH), costs.step[name], costs.step.get(LIVE)
    total = build + EPOCHS * STEPS_OF_EPOCH * step
    saved = 0.0 if live is None else STEPS_OF_EPOCH * (live - step)
    return Epochs(
        name,
        build,
        total - build,
        None if live is None else total / (EPOCHS * STEPS_OF_EPOCH * live),
        math.floor(build / saved) + 1 if saved > 0 and name != LIVE else None,
    )


def _training(line: Line, costs: _Costs) -> Training:
    job, result = line["job"], line["result"]
    name, steps = job["contestant"], job["steps"] * job["epochs"]
    computed = costs.build(name, job["steps"]) + steps * costs.step[name] if name in costs.step else None
    measured = result["build_s"] + result["train_s"]
    return Training(name, job["epochs"], steps, computed, measured, result["before"], result["after"])


def _writing(written: Sequence[Line]) -> Writing:
    fresh, replays = steps_of(written, ON_POLICY), steps_of(written, REPLAY)
    replayed, tokens, speeds, lengths, share = [], [], [], [], []
    for result in written:
        run, rows = result["runs"][ON_POLICY], result["rows"]
        logs = run["logs"][1:]
        lengths.append(fmean(log["completion_length"] for log in logs))
        speeds.append(fmean(log["generated_tokens_per_second"] for log in logs))
        tokens.append(fmean(result["prompt_tokens"][1 : len(run["logs"])]) + rows * lengths[-1])
        again = result["runs"][REPLAY]
        kinds = [log["replayed_fraction"] == 1 for log in again["logs"][1:]]
        replayed += [s for s, old in zip(again["seconds"][1:], kinds, strict=True) if old]
        share.append(1 - fmean(kinds))
    on_policy, length = _spread(fresh), fmean(lengths)
    old = median(replayed) if replayed else None
    return Writing(
        fresh=on_policy,
        writing_s=written[0]["rows"] * length / median(speeds),
        replayed=old,
        ms_per_token=1e3 * on_policy.value / fmean(tokens),
        completion_length=length,
        tokens_per_second=over_rounds(speeds),
        expected=None if old is None else FRESH * on_policy.value + (1 - FRESH) * old,
        measured=over_rounds([fmean(each) for each in replays]),
        measured_fresh=fmean(share),
    )
