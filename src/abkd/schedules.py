"""Values that change while a run progresses: pure functions of ``progress`` in [0, 1]."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard, TypeVar

from abkd.divergences import AlphaBeta, Divergence, WeightedSum
from abkd.errors import ConfigError
from abkd.stateful import Stateful

_T = TypeVar("_T")

_SHAPES = {"linear": lambda t: t, "cosine": lambda t: (1.0 - math.cos(math.pi * t)) / 2.0}


class Schedule:
    """A frozen, stateless function of ``progress`` in [0, 1] that returns a number or a divergence."""

    def __call__(self, progress: float) -> Any:
        """The value at ``progress`` (clipped to [0, 1])."""
        raise NotImplementedError

    def values(self) -> list[Any]:
        """All values of the schedule; of a continuous transition, its two ends."""
        return [self(progress) for progress in self.moments()]

    def moments(self) -> list[float]:
        """Values of ``progress`` in [0, 1], at least one from each continuous stretch."""
        return [step / 100 for step in range(101)]


@dataclass(frozen=True, repr=False)
class anneal(Schedule):  # noqa: N801 - users write it like a verb: anneal(ForwardKL(), AlphaBeta(0.2, 0.7))
    """From ``start`` to ``end``, linearly or along half a cosine wave.

    Two points of the α-β plane are joined by a straight path in the plane; any other two divergences are blended with
    weights ``1-t`` and ``t``; numbers are interpolated.

    Raises:
        ConfigError: an unknown shape, or ends of different kinds.
    """

    start: float | Divergence
    end: float | Divergence
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.shape not in _SHAPES:
            raise ConfigError(f"anneal: shape must be one of {', '.join(_SHAPES)}, got {self.shape!r}")
        pair = (self.start, self.end)
        if not (all(isinstance(x, Divergence) for x in pair) or all(is_number(x) for x in pair)):
            raise ConfigError(f"anneal needs two divergences or two numbers, got {self.start!r} and {self.end!r}")

    def __repr__(self) -> str:
        return f"anneal({self.start!r}, {self.end!r}, shape={self.shape!r})"

    def __call__(self, progress: float) -> Any:
        t = _SHAPES[self.shape](min(max(progress, 0.0), 1.0))
        if t in (0.0, 1.0):
            return self.end if t else self.start
        start, end = self.start, self.end
        if isinstance(start, AlphaBeta) and isinstance(end, AlphaBeta):
            return AlphaBeta(_between(start.alpha, end.alpha, t), _between(start.beta, end.beta, t))
        if isinstance(start, Divergence) and isinstance(end, Divergence):
            return WeightedSum((1.0 - t, start), (t, end))
        return _between(start, end, t)

    def values(self) -> list[float | Divergence]:
        return [self.start, self.end]

    def moments(self) -> list[float]:
        return [0.0, 0.5, 1.0]


@dataclass(frozen=True, init=False, repr=False)
class stages(Schedule):  # noqa: N801 - as above: stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))
    """One value after another, each for its share of the run; shares are relative and need not sum to 1.

    Raises:
        ConfigError: no stage, or a share that is not above 0.
    """

    parts: tuple[tuple[float, Any], ...]

    def __init__(self, *parts: tuple[float, object]) -> None:
        for part in parts:
            if not (isinstance(part, tuple | list) and len(part) == 2 and is_number(part[0]) and part[0] > 0):
                raise ConfigError(f"a stage must be (share of the run, value), as in (0.5, ForwardKL()), got {part!r}")
        if not parts:
            raise ConfigError("stages needs stages, as in stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))")
        object.__setattr__(self, "parts", tuple((float(share), value) for share, value in parts))

    def __repr__(self) -> str:
        return f"stages({', '.join(f'({share!r}, {value!r})' for share, value in self.parts)})"

    def __call__(self, progress: float) -> Any:
        total = sum(share for share, _ in self.parts)
        begin = 0.0
        for share, value in self.parts:
            width = share / total
            if progress < begin + width:
                return at(value, (progress - begin) / width)
            begin += width
        return at(self.parts[-1][1], 1.0)

    def values(self) -> list[object]:
        return [each for _, value in self.parts for each in values_of(value)]

    def moments(self) -> list[float]:
        total = sum(share for share, _ in self.parts)
        begin, found = 0.0, []
        for share, value in self.parts:
            found += [begin + moment * share / total for moment in moments_of(value)]
            begin += share / total
        return found


class Control(Stateful):
    """A controller opened for one run; ``value`` is its current number."""

    value: float


class Controller(Schedule):
    """A number that depends on the run's own measurements: a frozen value that opens a :class:`Control`.

    It may stand wherever a number may be a schedule, and in the fields of components that accept one. Before a run its
    value is its initial one; :meth:`values` gives the ends of its range, for checks.
    """

    @abstractmethod
    def open(self) -> Control:
        """The control for one run, at its initial value."""

    @abstractmethod
    def values(self) -> list[float]:
        """The initial value, then the other end or ends of the range."""

    def moments(self) -> list[float]:
        return [0.0]

    def __call__(self, progress: float) -> float:
        return self.values()[0]


def schedules_in(value: object) -> list[Schedule]:
    """The distinct schedules in a component or a list, however deep, but not those inside of other schedules."""
    if isinstance(value, Schedule):
        return [value]
    return list(dict.fromkeys(found for part in _parts(value) for found in schedules_in(part)))


def evaluated(value: _T, progress: float) -> _T:
    """A component or a list with the value at ``progress`` in place of each schedule in it."""
    return _replaced(value, Schedule, lambda each: each(progress)) if schedules_in(value) else value


def controllers_in(value: object) -> list[Controller]:
    """The distinct controllers in a component, a schedule or a list, however deep."""
    if isinstance(value, Controller):
        return [value]
    return list(dict.fromkeys(found for part in _parts(value) for found in controllers_in(part)))


def with_controls(value: _T, controls: Mapping[Controller, Control]) -> _T:
    """The same with the current number of its control in place of each controller."""
    return _replaced(value, Controller, lambda each: controls[each].value) if controllers_in(value) else value


def _replaced(value: Any, kind: type[_T], function: Callable[[_T], object]) -> Any:
    """A component with ``function(part)`` in place of each part of this kind."""
    if isinstance(value, kind):
        return function(value)
    parts = _parts(value)
    if not parts:
        return value
    changed = [_replaced(part, kind, function) for part in parts]
    if all(new is old for new, old in zip(changed, parts, strict=True)):
        return value
    if isinstance(value, list | tuple):
        return type(value)(changed)
    if not value.__dataclass_params__.init:  # stages and WeightedSum take their parts one by one
        return type(value)(*changed[0])
    names = [each.name for each in dataclasses.fields(value)]
    return dataclasses.replace(value, **dict(zip(names, changed, strict=True)))


def _parts(value: object) -> list[object]:
    """The elements of a list, or the values of the fields of a component."""
    if isinstance(value, list | tuple):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name) for each in dataclasses.fields(value)]
    return []


def at(value: _T | Schedule, progress: float) -> _T:
    """``value`` itself, or its value at ``progress`` if it is a schedule."""
    if isinstance(value, Schedule):
        return value(progress)
    return value


def values_of(value: _T | Schedule) -> list[_T]:
    """``value`` itself, or all values of a schedule."""
    return value.values() if isinstance(value, Schedule) else [value]


def moments_of(*values: object) -> list[float]:
    """Sorted values of ``progress`` that cover a run: whatever holds at any time of it holds at one of them.

    Between two of them each of ``values`` is constant, or moves continuously from one value to another.
    """
    found = {moment for value in values if isinstance(value, Schedule) for moment in value.moments()} | {0.0, 1.0}
    ends = sorted(found)
    return sorted(found | {(before + after) / 2 for before, after in pairwise(ends)})


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number (and not a boolean)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _between(start: Any, end: Any, t: float) -> float:
    return (1.0 - t) * start + t * end
