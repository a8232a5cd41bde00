"""``[RECIPE] [--name value] ...``: the words after a verb, as a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkd.errors import ConfigError, shown
from abkd.output_dir import DEFAULT, check_free
from abkd.recipe import parse_flags, read_recipe

if TYPE_CHECKING:
    from abkd.recipe import Recipe


def refuse_if_busy(words: Sequence[str]) -> None:
    """Refuse at once, before torch is loaded, where another process is at work in the output directory of the words.

    Words that say none are left to :func:`read_request`, which explains what is wrong with them.

    Raises:
        OutputDirError: somebody is at work there.
    """
    named = _is_named(words)
    try:
        found: Any = parse_flags(words[1:] if named else words).get("output_dir")
        if found is None and named:
            found = read_recipe(words[0]).get("output_dir")
    except ConfigError:
        found = None
    check_free(Path(str(found or DEFAULT)))


def read_request(words: Sequence[str], extra: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that the words describe, and what the verb alone takes, by name and type.

    A switch is false and all else None unless given.

    Raises:
        ConfigError: see ``parse_flags`` and ``Recipe.from_dict``.
    """
    from abkd.recipe import Recipe

    named = _is_named(words)
    flags = parse_flags(words[1:] if named else words)
    own = {name: False if kind is bool else None for name, kind in extra.items()}
    own |= {name: _own(name, kind, flags.pop(name)) for name, kind in extra.items() if name in flags}
    if named:
        return Recipe.from_yaml(words[0], flags), own
    if not flags:
        raise ConfigError("nothing to do: name a recipe (the shipped quickstart is one) or give flags; see --help")
    return Recipe.from_dict(flags, where="flags", flags=flags.keys()), own


def _is_named(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("-")


_FORMS = {
    "grid": "takes a YAML mapping to lists, e.g. \"{divergence: ['ForwardKL()', 'AlphaBeta(0.2, 0.7)']}\"",
    "seeds": "takes whole numbers separated by commas, e.g. 1,2,3",
}


def _own(name: str, kind: Any, value: Any) -> Any:
    from abkd.recipe import coerce

    try:
        return coerce(name, kind, value)
    except ConfigError as error:
        if "commas needs quotes" in str(error) or name not in _FORMS:
            raise ConfigError(f"--{str(error).removeprefix('--')}") from error
        raise ConfigError(f"--{name} {_FORMS[name]}; got {shown(value)}") from error
