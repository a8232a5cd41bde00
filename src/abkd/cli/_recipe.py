"""``[RECIPE] [--name value] ...``: the arguments of a command, as a recipe."""

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
    """Fail early, before torch is imported, if another process is using the output directory.

    Arguments that cannot be parsed are left to :func:`read_request`, which reports what is wrong with them.

    Raises:
        OutputDirError: the directory is in use by another process.
    """
    named = _is_named(words)
    try:
        found = parse_flags(words[1:] if named else words).get("output_dir")
        if found is None and named:
            found = read_recipe(words[0]).get("output_dir")
    except ConfigError:
        found = None
    check_free(Path(str(found or DEFAULT)))


def read_request(
    words: Sequence[str], extra: Mapping[str, object], *, load_code: bool = True
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe given by the arguments, and the values of the command's own options.

    Args:
        extra: type of each such option by name; a bool is False and any other None unless given.
        load_code: whether components of other packages are imported.

    Raises:
        ConfigError: see ``parse_flags`` and ``Recipe.from_dict``.
    """
    from abkd.recipe import Recipe

    named = _is_named(words)
    flags = parse_flags(words[1:] if named else words)
    own: dict[str, Any] = {name: False if kind is bool else None for name, kind in extra.items()}
    own |= {name: _own(name, kind, flags.pop(name)) for name, kind in extra.items() if name in flags}
    if named:
        return Recipe.from_yaml(words[0], flags, load_code=load_code), own
    if not flags:
        raise ConfigError("nothing to do: give a recipe (such as the shipped quickstart) or flags; see --help")
    return Recipe.from_dict(flags, where="flags", flags=flags.keys(), load_code=load_code), own


def _is_named(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("-")


_FORMS = {
    "grid": "must be a YAML mapping to lists, e.g. \"{divergence: ['ForwardKL()', 'AlphaBeta(0.2, 0.7)']}\"",
    "seeds": "must be integers separated by commas, e.g. 1,2,3",
}


def _own(name: str, kind: object, value: object) -> object:
    from abkd.recipe import coerce

    try:
        return coerce(name, kind, value)
    except ConfigError as error:
        if "commas needs quotes" in str(error) or name not in _FORMS:
            raise ConfigError(f"--{str(error).removeprefix('--')}") from error
        raise ConfigError(f"--{name} {_FORMS[name]}, got {shown(value)}") from error
