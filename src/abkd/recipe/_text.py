"""How a recipe is written: flat YAML in a file, ``--name value`` on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from abkd.errors import ConfigError

_NULLS = ("~", "null", "Null", "NULL", "")


class FlagText(str):
    """A value as it was typed in a shell: read as YAML where that fits its field, else taken as the text it is."""

    @property
    def is_null(self) -> bool:
        """It unsets the field, as ``null`` does in a file."""
        return self in _NULLS


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: ``no`` is a text (``eval_strategy: no``) and ``1e-4`` a number; no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice; keep one")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
    ("null", "|".join(_NULLS), ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_yaml(text: str, where: str) -> Any:
    """The value that a YAML text writes; a ConfigError that names ``where`` and the line if it writes none."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with fewer surprises
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not YAML ({error.problem}); a recipe is lines of 'name: value'") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({error}); a recipe is lines of 'name: value'") from error


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """The ``name: value`` pairs of a recipe file (an empty file has none)."""
    values = read_yaml(text, where)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a recipe is lines of 'name: value', but this is a {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def write_mapping(values: Mapping[str, Any]) -> str:
    """Flat YAML in the given order, plain values only."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """``--name value``, ``--name=value`` and a bare ``--name`` (true) as values by name.

    Raises:
        ConfigError: a value without a name, or a name that comes twice.

    >>> parse_flags(["--learning_rate", "1e-4", "--bf16"])
    {'learning_rate': '1e-4', 'bf16': True}
    """
    flags: dict[str, Any] = {}
    for name, value in _pairs(words):
        if name in flags:
            raise ConfigError(f"--{name} is there twice; keep one")
        flags[name] = value
    return flags


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, Any]]:
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(
                f"{word!r} belongs to no flag: write --name value, and a list as one value: --name '[one, two]'"
            )
        name, equals, value = word[2:].partition("=")
        if equals:
            yield name, FlagText(value)
        elif left and not left[0].startswith("--"):
            yield name, FlagText(left.pop(0))
        else:
            yield name, True
