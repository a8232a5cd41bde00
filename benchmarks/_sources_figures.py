"""From the measurements of ``benchmarks.sources`` to figures: medians over the rounds, with the rounds' extremes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, NamedTuple

from benchmarks._sources_contestants import (
    CACHES,
    CONTESTANTS,
    FRESH,
    HALF,
    HIDDEN,
    LABELS,
    LIVE,
    ON_POLICY,
    REPLAY,
    SFT,
    TOP_K,
)

EPOCHS, STEPS_OF_EPOCH = 10, 40  # the demo's 320 rows, 8 a step
MIB = 2**20
Line = Mapping[str, Any]


class Spread(NamedTuple):
    """A median, and the least and largest of the rounds."""

    value: float
    low: float
    high: float


class Step(NamedTuple):
    """A step of one contestant; None where it was not measured."""

    contestant: str
    seconds: Spread | None
    ms_per_token: float | None
    ms_per_answer_token: float | None
    peak_mb: float | None
    above_mb: float | None
    bytes_per_token: float


class Cache(NamedTuple):
    """What building one costs: for each token that is trained on, and once."""

    contestant: str
    build_ms_per_token: Spread
    once_s: float
    bytes_per_token: float
    head_mb: float


class Epochs(NamedTuple):
    """``EPOCHS`` epochs of the demo's rows, computed; ``pays_from`` is the first epoch at whose end it is ahead."""

    contestant: str
    build_s: float
    steps_s: float
    of_live: float | None
    pays_from: int | None

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.build_s + self.steps_s


class Training(NamedTuple):
    """A short training that was really done."""

    contestant: str
    epochs: int
    steps: int
    computed_s: float | None
    measured_s: float
    before: Mapping[str, float]
    after: Mapping[str, float]


class Writing(NamedTuple):
    """What it costs that the student writes: seconds of a step in which it does, and of one that replays."""

    fresh: Spread
    writing_s: float
    replayed: float | None
    ms_per_token: float
    completion_length: float
    tokens_per_second: Spread
    expected: float | None
    """Of a step of ``Replay(fresh=FRESH)``: so much of the one, the rest of the other."""
    measured: Spread
    """The mean step of the replay that was measured, with the share of fresh steps that its coins gave it."""
    measured_fresh: float


class Claim(NamedTuple):
    """``value`` should be at most ``target``, where there is one."""

    what: str
    value: Spread
    target: float | None = None

    @property
    def wanted(self) -> str:
        """The target as text."""
        return "–" if self.target is None else f"≤ {self.target:g}"

    @property
    def verdict(self) -> str:
        """In a word."""
        return "–" if self.target is None else "met" if self.value.value <= self.target else "missed"


@dataclass(frozen=True)
class Figures:
    """All of it."""

    steps: list[Step]
    caches: list[Cache]
    epochs: list[Epochs]
    trainings: list[Training]
    writing: Writing | None
    claims: list[Claim]


def figures(lines: Sequence[Line]) -> Figures:
    """What the lines of the record tell."""
    timed, written, generated = (_results(lines, kind) for kind in ("time", "write", "generate"))
    memory = {line["job"]["contestant"]: line["result"] for line in lines if line["job"]["kind"] == "memory"}
    caches = [_cache(name, timed) for name in CACHES if any(name in result["built"] for result in timed)]
    steps = [_step(name, timed, memory.get(name), caches) for name in CONTESTANTS]
    seconds = {step.contestant: step.seconds.value for step in steps if step.seconds is not None}
    costs = _Costs(seconds, {each.contestant: each for each in caches}, _tokens(timed, "trained"))
    writing = _writing(written) if written else None
    trainings = [_training(line, costs) for line in lines if line["job"]["kind"] == "train"]
    return Figures(
        steps=steps,
        caches=caches,
        epochs=[_epochs(name, costs) for name in (LIVE, *CACHES) if name in seconds],
        trainings=trainings,
        writing=writing,
        claims=[*_claims(timed, caches), *_of_writing(written, writing, generated), *_of_quality(trainings)],
    )


def _results(lines: Sequence[Line], kind: str) -> list[Any]:
    return [line["result"] for line in lines if line["job"]["kind"] == kind]


def _tokens(timed: Sequence[Line], what: str) -> float:
    """Mean of the steps that are counted: all but the first."""
    return fmean(batch[what] for batch in timed[0]["tokens"][1:]) if timed else 0.0


def _spread(rounds: Sequence[Sequence[float]]) -> Spread:
    """Of each step the median over the rounds, of these the mean; beside it the least and largest mean of a round."""
    means = [fmean(each) for each in rounds]
    return Spread(fmean(median(step) for step in zip(*rounds, strict=True)), min(means), max(means))


def _once(value: float) -> Spread:
    return Spread(value, value, value)


def _over_rounds(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def _seconds(timed: Sequence[Line], name: str) -> list[list[float]]:
    return [result["runs"][name]["seconds"][1:] for result in timed if name in result["runs"]]


def _step(name: str, timed: Sequence[Line], memory: Line | None, caches: Sequence[Cache]) -> Step:
    rounds = _seconds(timed, name)
    seconds = _spread(rounds) if rounds else None
    per = [None if seconds is None else 1e3 * seconds.value / _tokens(timed, what) for what in ("all", "trained")]
    peak = above = None
    if memory is not None:
        peak = (memory["before"] + memory["rise"]) / MIB
        above = (memory["rise"] - memory["gradients_and_state"]) / MIB
    stored = sum(each.bytes_per_token for each in caches if each.contestant == name)
    return Step(name, seconds, per[0], per[1], peak, above, stored)


def _cache(name: str, timed: Sequence[Line]) -> Cache:
    built = [result["built"][name] for result in timed if name in result["built"]]
    return Cache(
        name,
        _over_rounds([1e3 * each["per_token"] for each in built]),
        median(each["once"] for each in built),
        built[0]["bytes_per_token"],
        built[0]["head_bytes"] / MIB,
    )


@dataclass(frozen=True)
class _Costs:
    """Seconds of a step, what building costs, tokens that a step trains on."""

    step: Mapping[str, float]
    cache: Mapping[str, Cache]
    tokens: float

    def build(self, name: str, steps: int) -> float:
        """Seconds to build a cache of the rows of so many steps."""
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
    fresh, replays = _seconds(written, ON_POLICY), _seconds(written, REPLAY)
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
        tokens_per_second=_over_rounds(speeds),
        expected=None if old is None else FRESH * on_policy.value + (1 - FRESH) * old,
        measured=_over_rounds([fmean(each) for each in replays]),
        measured_fresh=fmean(share),
    )


def _claims(timed: Sequence[Line], caches: Sequence[Cache]) -> Iterator[Claim]:
    pairs = [(name, base, limit) for base in (SFT, LABELS) for name, limit in _LIMITS.items()]
    for name, base, limit in [*pairs, (LABELS, SFT, None), *((name, LIVE, None) for name in CACHES)]:
        value = _quotient(timed, name, base)
        if value is not None:
            yield Claim(f"{name} / {base}", value, limit)
    for each in caches:
        limit = 300 if each.contestant == TOP_K else None
        yield Claim(f"{each.contestant}: bytes per token", _once(each.bytes_per_token), limit)


_LIMITS = {TOP_K: 1.10, HIDDEN: 1.15, HALF: 1.15}


def _quotient(timed: Sequence[Line], over: str, under: str) -> Spread | None:
    """The median of the quotients of the same batch in the same round, and the least and largest of a whole round."""
    rounds = list(zip(_seconds(timed, over), _seconds(timed, under), strict=True))
    if not rounds:
        return None
    values = [top / bottom for each in rounds for top, bottom in zip(*each, strict=True)]
    whole = [sum(top) / sum(bottom) for top, bottom in rounds]
    return Spread(median(values), min(whole), max(whole))


def _of_writing(written: Sequence[Line], writing: Writing | None, generated: Sequence[Line]) -> Iterator[Claim]:
    if writing is not None and writing.expected is not None:
        rounds = [fmean(each) for each in _seconds(written, ON_POLICY)]
        ratios = [writing.expected / each for each in (writing.fresh.value, max(rounds), min(rounds))]
        yield Claim(f"a step of replay (fresh={FRESH:g}) / on-policy", Spread(*ratios))
    for result in generated:
        speeds = [{way: run["tokens"] / run["seconds"] for way, run in each.items()} for each in result["runs"]]
        for way in speeds[0]:
            yield Claim(f"tokens/s, prompts {way}", _over_rounds([each[way] for each in speeds]))
        gain = [each["all at once"] / each["one by one"] for each in speeds]
        yield Claim("tokens/s, all at once : one by one", _over_rounds(gain))


def _of_quality(trainings: Sequence[Training]) -> Iterator[Claim]:
    live = next((each for each in trainings if each.contestant == LIVE), None)
    for each in trainings:
        if live is not None and each is not live:
            value = each.after["forward_kl"] / live.after["forward_kl"]
            yield Claim(f"held-out forward KL: {each.contestant} / {LIVE}", _once(value))
