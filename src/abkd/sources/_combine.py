"""Sources that combine other sources: one or the other, both, or with a context for the teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.schedules import Schedule, at, is_number, values_of
from abkd.sources._streams import Combined, coin, entry
from abkd.sources._types import Generators, Source, Step, Stream, walk


@dataclass(frozen=True)
class Adaptive:
    """A share of a :class:`Mix` that grows by ``step`` (to at most 1) whenever ``eval_loss`` gets worse.

    Worse means: at least the previous evaluation's loss plus ``tolerance``. This is DistiLLM's rule (arXiv 2402.03898),
    with its defaults.

    Raises:
        ConfigError: ``start`` or ``step`` outside [0, 1], or a tolerance that is not a finite number >= 0.
    """

    start: float = 0.0
    step: float = 0.1
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        for name in ("start", "step"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise ConfigError(f"Adaptive: {name} must be between 0 and 1, got {value!r}")
        if not (is_number(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(f"Adaptive: tolerance must be a finite number >= 0, got {self.tolerance!r}")


@dataclass(frozen=True)
class Mix(Source):
    """At each optimizer step ``source`` with probability ``share``, else ``otherwise``; the same in all processes.

    Args:
        share: a number, a schedule or :class:`Adaptive`.

    Raises:
        ConfigError: a share outside [0, 1], or parts that are not sources or cannot be combined.
    """

    share: float | Schedule | Adaptive
    source: Source
    otherwise: Source

    def __post_init__(self) -> None:
        if not isinstance(self.share, Adaptive):
            check_probability("Mix", "share", self.share)
        check_parts("Mix", self.parts)

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.source, self.otherwise)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _MixStream(self.share, open_parts(self, writers, privileged, path), path)


class _MixStream(Combined):
    def __init__(self, share: float | Schedule | Adaptive, parts: Sequence[Stream], path: str) -> None:
        super().__init__(parts)
        self.path, self.rule = path, share
        self.reached = share.start if isinstance(share, Adaptive) else 0.0
        self.previous: float | None = None

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        return self.draw_from(0 if coin(at, self.path) < self._share(at.progress) else 1, prompts, at)

    def _share(self, progress: float) -> float:
        return self.reached if isinstance(self.rule, Adaptive) else at(self.rule, progress)

    def observe(self, metrics: Mapping[str, float]) -> None:
        super().observe(metrics)
        loss = metrics.get("eval_loss", math.nan)
        if not (isinstance(self.rule, Adaptive) and is_number(loss)):
            return
        if self.previous is not None and loss >= self.previous + self.rule.tolerance:
            self.reached = min(1.0, self.reached + self.rule.step)
        self.previous = loss

    def state(self) -> dict[str, Any]:
        own = {"share": self.reached, "previous": self.previous} if isinstance(self.rule, Adaptive) else {}
        return {**super().state(), **own}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        if isinstance(self.rule, Adaptive):
            self.reached, self.previous = entry(state, "share"), entry(state, "previous")

    def logs(self) -> dict[str, float]:
        own = {"mix_share": self.reached} if isinstance(self.rule, Adaptive) else {}
        return {**super().logs(), **own}


@dataclass(frozen=True, init=False, repr=False)
class Union(Source):
    """For every prompt, the sequences of each of its sources, in their order: a term can then select by origin.

    Raises:
        ConfigError: fewer than two parts, or parts that are not sources or cannot be combined.
    """

    sources: tuple[Source, ...]

    def __init__(self, *sources: Source) -> None:
        object.__setattr__(self, "sources", sources)
        if len(sources) < 2:
            raise ConfigError(f"Union needs at least two sources, as Union(Dataset(), StudentSamples()), got {self!r}")
        check_parts("Union", sources)

    def __repr__(self) -> str:
        return f"Union({', '.join(map(repr, self.sources))})"

    @property
    def parts(self) -> tuple[Source, ...]:
        return self.sources

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _UnionStream(open_parts(self, writers, privileged, path))


class _UnionStream(Combined):
    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        drawn = [self.draw_from(place, prompts, at) for place in range(len(self.parts))]
        return [[one for group in groups for one in group] for groups in zip(*drawn, strict=True)]


@dataclass(frozen=True)
class Privileged(Source):
    """Context distillation: before the prompt, the teacher reads a context that the student does not see.

    Args:
        source: the source of the sequences; the student generates without the context.
        context: the text; None uses each row's column ``context``. It is put in front of a plain prompt as it is, and
            in a conversation into (or before) the system message.

    Raises:
        ConfigError: inside another ``Privileged``, or a context that is not a string.
    """

    source: Source
    context: str | None = None

    def __post_init__(self) -> None:
        if not (self.context is None or isinstance(self.context, str)):
            raise ConfigError(f"Privileged: context must be a string, or None for the column, got {self.context!r}")
        check_parts("Privileged", self.parts)
        if any(isinstance(part, Privileged) for part in walk(self.source)):
            raise ConfigError("Privileged cannot be nested: the teacher reads one context; put both into one string")

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.source,)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return self.source.open(writers, privileged=True, path=f"{path}/0")


def contexts(sources: Sequence[Source]) -> set[str | None]:
    """The contexts that the teacher reads in these trees: at most one.

    Raises:
        ConfigError: there are several.
    """
    found = {part.context for source in sources for part in walk(source) if isinstance(part, Privileged)}
    if len(found) > 1:
        named = " and ".join(sorted(map(repr, found)))
        raise ConfigError(
            f"the teacher reads one context per row, but the source has several: {named}; "
            "put each row's own into the column `context`, and use Privileged(...) without one"
        )
    return found


def open_parts(source: Source, writers: Generators, privileged: bool, path: str) -> list[Stream]:
    """The streams of its parts, each with its own path in the tree."""
    return [
        part.open(writers, privileged=privileged, path=f"{path}/{place}") for place, part in enumerate(source.parts)
    ]


def check_parts(owner: str, parts: Sequence[Any]) -> None:
    """Raise ConfigError unless these are sources that can be combined."""
    for part in parts:
        if isinstance(part, Schedule):
            raise ConfigError(
                f"{owner} expects sources, got {part!r}: put stages outside, as in "
                f"stages((0.3, Dataset()), (0.7, {owner}(...)))"
            )
        if not isinstance(part, Source):
            hint = ": it is a share, as in Mix(Adaptive(), StudentSamples(), Dataset())" * isinstance(part, Adaptive)
            raise ConfigError(f"{owner} expects sources, such as StudentSamples(), got {part!r}{hint}")
    contexts(parts)


def check_probability(owner: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is between 0 and 1 throughout a run."""
    for one in values_of(value):
        if isinstance(one, Adaptive):
            raise ConfigError(
                f"{owner}: Adaptive can only be the whole share of a Mix; {name} must be a number or schedule"
            )
        if not (is_number(one) and 0 <= one <= 1):
            raise ConfigError(f"{owner}: {name} is a probability and must be between 0 and 1, got {value!r}")
