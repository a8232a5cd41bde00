"""Type checks of settings against their annotations, which Python does not enforce."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from abkd.errors import KINDS, ConfigError, shown

_KINDS: dict[object, type | tuple[type, ...]] = {
    str: str,
    dict: Mapping,
    list: (list, tuple),
    types.NoneType: types.NoneType,
}
_NUMBERS = frozenset((bool, int, float, types.NoneType))


def settle_kinds(config: Any, hints: Mapping[str, object], own: Collection[str]) -> None:
    """Convert ``2.0`` to 2 where an integer is expected, and NumPy scalars to Python ones; refuse any other type.

    Args:
        config: a dataclass.
        hints: the type of each field, by name.
        own: the fields whose types are checked strictly. Of the others, which transformers declares, only numbers and
            booleans are checked, because more types are accepted there than annotated.

    Raises:
        ConfigError: a value of another type, or not one of the choices.
    """
    for field in dataclasses.fields(config):
        name, arms, value = field.name, _arms(hints.get(field.name, Any)), getattr(config, field.name)
        if name not in own and (value is None or not arms <= _NUMBERS):
            continue
        value = value.item() if isinstance(value, np.generic) else value
        if not any(_fits(arm, value) for arm in arms):
            hint = ": write 1e-3 in Python, 1.0e-3 in YAML" if isinstance(value, str) and float in arms else ""
            raise ConfigError(f"{name} must be {_wanted(arms)}, got {shown(value)}{hint}")
        setattr(config, name, _plain(arms, value))


def _arms(hint: object) -> frozenset[object]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return frozenset(typing.get_args(hint) if union else (hint,))


def _fits(arm: object, value: object) -> bool:
    """Whether a value has this type; components are checked where they are used."""
    if typing.get_origin(arm) is typing.Literal:
        return isinstance(value, str) and value in typing.get_args(arm)
    kind = typing.get_origin(arm) or arm
    if kind is bool:
        return isinstance(value, Integral) and value in (0, 1)
    if kind in (int, float):
        whole = kind is float or isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
        return isinstance(value, Real) and not isinstance(value, bool) and whole
    return kind not in _KINDS or isinstance(value, _KINDS[kind])


def _plain(arms: frozenset[object], value: object) -> object:
    if bool in arms and isinstance(value, Integral):
        return bool(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return value
    return int(value) if int in arms else value if isinstance(value, int) else float(value)  # type: ignore[arg-type]


def _wanted(arms: frozenset[object]) -> str:
    choices = [f"one of {', '.join(typing.get_args(arm))}" for arm in arms if typing.get_origin(arm) is typing.Literal]
    kinds = [words for kind, words in KINDS.items() if kind in {typing.get_origin(arm) or arm for arm in arms}]
    return " or ".join([*choices, *kinds])
