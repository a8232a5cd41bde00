"""``[RECIPE] [--name value] ...``: the words after a verb, as a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from abkd.errors import ConfigError, shown
from abkd.recipe import Recipe, parse_flags
from abkd.recipe._fields import coerce


def read_request(words: Sequence[str], extra: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that the words describe, and what the verb alone takes, by name and type.

    A switch is false and all else None unless given.

    Raises:
        ConfigError: see ``parse_flags`` and ``Recipe.from_dict``.
    """
    named = bool(words) and not words[0].startswith("-")
    flags = parse_flags(words[1:] if named else words)
    own = {name: False if kind is bool else None for name, kind in extra.items()}
    own |= {name: _own(name, kind, flags.pop(name)) for name, kind in extra.items() if name in flags}
    if named:
        return Recipe.from_yaml(words[0], flags), own
    if not flags:
        raise ConfigError("nothing to do: name a recipe (the shipped quickstart is one) or give flags; see --help")
    return Recipe.from_dict(flags, where="flags", flags=flags.keys()), own


_FORMS = {
    "grid": "takes a YAML mapping to lists, e.g. \"{divergence: ['ForwardKL()', 'AlphaBeta(0.2, 0.7)']}\"",
    "seeds": "takes whole numbers separated by commas, e.g. 1,2,3",
}


def _own(name: str, kind: Any, value: Any) -> Any:
    try:
        return coerce(name, kind, value)
    except ConfigError as error:
        if "commas needs quotes" in str(error) or name not in _FORMS:
            raise ConfigError(f"--{str(error).removeprefix('--')}") from error
        raise ConfigError(f"--{name} {_FORMS[name]}; got {shown(value)}") from error
