"""Whether settings that are numbers have been given numbers: in Python nobody checks, and YAML reads 1e-3 as a text."""

from __future__ import annotations

import dataclasses
import re
from numbers import Integral, Real
from typing import Any

from abkd.errors import ConfigError, shown

_HINT = re.compile(r"(?:typing\.)?(?:Optional\[)?(?:<class ')?(int|float)(?:'>)?\]?(?: \| None)?")


def settle_numbers(config: Any) -> None:
    """Make ``2.0`` a 2 where a whole number is wanted, and numbers of numpy plain ones.

    Args:
        config: a dataclass, whose annotations say what is wanted.

    Raises:
        ConfigError: a number is wanted, and it is none.
    """
    for field in dataclasses.fields(config):
        wanted, value = _HINT.fullmatch(str(field.type)), getattr(config, field.name)
        if wanted is None or value is None or isinstance(value, bool):
            continue
        if not isinstance(value, Real):
            hint = ": write 1e-3 in Python, 1.0e-3 in YAML" if isinstance(value, str) else ""
            raise ConfigError(f"{field.name} must be a number, but is {shown(value)}{hint}")
        number: Any = value
        if wanted[1] == "float":
            setattr(config, field.name, number if isinstance(number, int) else float(number))
        elif isinstance(value, Integral) or float(value).is_integer():
            setattr(config, field.name, int(number))
        else:
            raise ConfigError(f"{field.name} must be a whole number, but is {shown(value)}")
