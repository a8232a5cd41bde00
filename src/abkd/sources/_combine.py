"""Sources that combine other sources: one or the other, both, or with a context for the teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abkd.data import Example
from abkd.errors import ConfigError
from abkd.schedules import Control, Controller, Schedule, at, controllers_in, is_number, values_of
from abkd.sources._streams import Combined, coin, entry
from abkd.sources._types import Generators, Source, Step, Stream, walk
from abkd.stateful import Evaluated, Event


@dataclass(frozen=True)
class Adaptive(Controller):
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

    def values(self) -> list[float]:
        return [self.start, 1.0]

    def open(self) -> Control:
        return _AdaptiveShare(self)


class _AdaptiveShare(Control):
    def __init__(self, rule: Adaptive) -> None:
        self.rule, self.value = rule, rule.start
        self.previous: float | None = None

    def observe(self, event: Event) -> None:
        loss = event.metrics.get("eval_loss", math.nan) if isinstance(event, Evaluated) else math.nan
        if not is_number(loss):
            return
        if self.previous is not None and loss >= self.previous + self.rule.tolerance:
            self.value = min(1.0, self.value + self.rule.step)
        self.previous = loss

    def state_dict(self) -> dict[str, object]:
        return {"share": self.value, "previous": self.previous}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.value, self.previous = entry(state, "share"), entry(state, "previous")


@dataclass(frozen=True)
class Mix(Source):
    """At each optimizer step ``source`` with probability ``share``, else ``otherwise``; the same in all processes.

    Args:
        share: a number, a schedule or a controller such as :class:`Adaptive`.

    Raises:
        ConfigError: a share outside [0, 1], or parts that are not sources or cannot be combined.
    """

    share: float | Schedule
    source: Source
    otherwise: Source

    def __post_init__(self) -> None:
        if not isinstance(self.share, Controller):
            check_probability("Mix", "share", self.share)
        check_parts("Mix", self.parts)

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.source, self.otherwise)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        return _MixStream(self.share, open_parts(self, writers, privileged, path), path)


class _MixStream(Combined):
    def __init__(self, share: float | Schedule, parts: Sequence[Stream], path: str) -> None:
        super().__init__(parts)
        self.path, self.share = path, share
        self.control = share.open() if isinstance(share, Controller) else None

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        return self.draw_from(0 if coin(at, self.path) < self._share(at.progress) else 1, prompts, at)

    def _share(self, progress: float) -> float:
        return at(self.share, progress) if self.control is None else self.control.value

    def observe(self, event: Event) -> None:
        super().observe(event)
        if self.control is not None:
            self.control.observe(event)

    def state_dict(self) -> dict[str, object]:
        return {**super().state_dict(), **({} if self.control is None else self.control.state_dict())}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        super().load_state_dict(state)
        if self.control is not None:
            self.control.load_state_dict(state)

    def logs(self) -> dict[str, float]:
        own = {} if self.control is None else {"mix_share": self.control.value, **self.control.logs()}
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


def check_parts(owner: str, parts: Sequence[Source]) -> None:
    """Raise ConfigError unless these are sources that can be combined."""
    for part in parts:
        if isinstance(part, Schedule) and not isinstance(part, Controller):
            raise ConfigError(
                f"{owner} expects sources, got {part!r}: put stages outside, as in "
                f"stages((0.3, Dataset()), (0.7, {owner}(...)))"
            )
        if not isinstance(part, Source):
            hint = ": it is a share, as in Mix(Adaptive(), StudentSamples(), Dataset())" * isinstance(part, Controller)
            raise ConfigError(f"{owner} expects sources, such as StudentSamples(), got {part!r}{hint}")
    contexts(parts)


def check_probability(owner: str, name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is between 0 and 1 throughout a run."""
    for control in controllers_in(value):
        raise ConfigError(
            f"{owner}: {type(control).__name__} can only be the whole share of a Mix; {name} must be a number or a "
            "schedule without controllers"
        )
    for one in values_of(value):
        if not (is_number(one) and 0 <= one <= 1):
            raise ConfigError(f"{owner}: {name} is a probability and must be between 0 and 1, got {value!r}")
