"""Parsing recipes: flat YAML in a file, ``--name value`` on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from abkd.errors import ConfigError

_NULLS = ("~", "null", "Null", "NULL", "")
_MOST_CHARACTERS = 200_000  # the longest shipped recipe has 2 500
_MOST_VALUES = 20_000  # with aliases expanded
_DEEPEST = 30  # nested lists
_REPEATABLE = ("allow_code",)
_LINES = "a recipe consists of lines of the form 'name: value'"


class FlagText(str):
    """A value as typed in a shell: a string if its field takes one, else parsed as YAML if possible."""

    @property
    def is_null(self) -> bool:
        """Whether it unsets the field, as ``null`` does in a file."""
        return self in _NULLS


class _Loader(yaml.SafeLoader):
    """Plain values as in YAML 1.2: ``no`` is a string (``eval_strategy: no``), ``1e-4`` a number; keys are unique.

    Merge keys, and tags other than those of plain values (such as ``!!binary``), are not supported.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As in yaml, with a maximum depth."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"line {_line(key)}: expected a name before the colon, got a list or a mapping")
            if key.value in seen:
                raise ConfigError(f"line {_line(key)}: the key {_shortened(key.value)!r} is given twice; keep one")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"]
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
} | {None: yaml.SafeLoader.construct_undefined}
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
    ("null", "|".join(_NULLS), ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_file(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        ConfigError: the file is too large, not readable, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}") from error
    if len(raw) > _MOST_CHARACTERS:
        raise ConfigError(f"{path} is not a recipe: it has more than {_MOST_CHARACTERS:,} bytes; {_LINES}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (invalid byte at {error.start + 1}): save it as UTF-8") from error


def read_yaml(text: str, where: str) -> object:
    """Parse YAML; a ConfigError names ``where`` and the line."""
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{where}: expected at most {_MOST_CHARACTERS:,} characters, got {len(text):,}")
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_in(node, {}) > _MOST_VALUES:
            raise ConfigError(f"its aliases (*name) expand to more than {_MOST_VALUES:,} values; use fewer")
        return loader.construct_document(node)
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not YAML ({_shortened(error.problem)}); {_LINES}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply; {_LINES}") from error
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
    ) as error:  # a number of 5 000 digits, a control code
        raise ConfigError(f"{where}: not YAML ({_shortened(error)}); {_LINES}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _values_in(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """The number of values in a node with its aliases expanded; infinite if it contains itself."""
    if node not in known:
        known[node] = float("inf")
        parts = _parts(node)
        for part in parts:
            _check_uncut(node, part)
        known[node] = 1 + sum(_values_in(part, known) for part in parts)
    return known[node]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_uncut(outside: yaml.Node, part: yaml.Node) -> None:
    """Raise ConfigError for a constructor call cut in two: in ``[AlphaBeta(0.2, 0.7)]`` YAML splits at the comma."""
    if not (isinstance(outside, yaml.CollectionNode) and outside.flow_style):
        return
    if isinstance(part, yaml.ScalarNode) and part.style is None and part.value.count("(") > part.value.count(")"):
        raise ConfigError(
            f"line {_line(part)}: {_shortened(part.value)!r} is split at a comma; inside [...] and {{...}} a component "
            "with commas needs quotes, such as 'AlphaBeta(0.2, 0.7)'"
        )


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1


def _shortened(what: object) -> str:
    text = str(what).partition("\n")[0]
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_mapping(text: str, where: str) -> dict[str, object]:
    """The ``name: value`` pairs of a recipe file (an empty file has none)."""
    values = read_yaml(text, where)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {_LINES}, got a {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def write_mapping(values: Mapping[str, object]) -> str:
    """Write plain values as flat YAML, in the given order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or our reader would not parse as strings, such as ``1e3``."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _Loader("").resolve(yaml.ScalarNode, text, (True, False)) == f"{_TAG}str"
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if plain else "'")


_Dumper.add_representer(str, _write_text)


def parse_flags(words: Sequence[str]) -> dict[str, object]:
    """Parse ``--name value``, ``--name=value`` and a bare ``--name`` (true); ``--a-name`` is ``--a_name``.

    ``--allow_code`` may be repeated, and then gives a list.

    Raises:
        ConfigError: a value without a name, or a repeated name.

    >>> parse_flags(["--learning-rate", "1e-4", "--bf16"])
    {'learning_rate': '1e-4', 'bf16': True}
    """
    flags: dict[str, object] = {}
    for name, value in _pairs(words):
        if name in flags and name not in _REPEATABLE:
            raise ConfigError(f"--{name} is given twice; keep one")
        before = flags.get(name, [])
        flags[name] = [*(before if isinstance(before, list) else [str(before)]), str(value)] if before else value
    return flags


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, FlagText | bool]]:
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected argument {word!r}: use --name value, and --name '[one, two]' for a list")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if equals:
            yield name, FlagText(value)
        elif left and not left[0].startswith("--"):
            yield name, FlagText(left.pop(0))
        else:
            yield name, True
