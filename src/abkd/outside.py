"""Components of other packages: ``python:package.module:Name(...)``, and names that are registered as entry points.

A package registers the name of a component in its ``pyproject.toml``:

    [project.entry-points."abkd.components"]
    Mine = "my_package.losses:Mine"
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from abkd import imports
from abkd.errors import ConfigError, shown
from abkd.imports import CodeName

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "abkd.components"

_COLON = "·"  # stands for the colons of python:package.module:Name in Python's syntax, to which it is a letter
_TOKENS = re.compile(
    r"""(?P<skipped>'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|\#[^\n]*)"""
    rf"""|(?<![\w.])(?P<code>python:[^\s()\[\],]*)|(?P<colon>{_COLON})""",
    re.DOTALL,
)
_CODE = re.compile(r"python:[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, repr=False)
class Unloaded:
    """A component as text, in place of its value: the code that it names is not imported."""

    text: str
    code: tuple[CodeName, ...] = ()

    def __repr__(self) -> str:
        return self.text


def as_python(text: str) -> str:
    """A notation as Python's syntax: ``python:package.module:Name`` outside of quotes becomes an attribute.

    Raises:
        ConfigError: a name that begins with ``python:`` and has another form.
    """
    return _TOKENS.sub(_as_python, text)


def as_written(text: str) -> str:
    """The notation that :func:`as_python` has turned into Python's syntax."""
    return text.replace(_COLON, ":")


def _as_python(token: re.Match[str]) -> str:
    if token["colon"]:
        raise ConfigError(f"expected a constructor call such as AlphaBeta(alpha=0.2, beta=0.7), got {_COLON!r} in it")
    code = token["code"]
    if code is None:
        return token[0]
    if not _CODE.fullmatch(code):
        raise ConfigError(f"expected python:package.module:Name(...), got {shown(code)}")
    return code.replace(":", _COLON)


def component(code: CodeName) -> type:
    """Import the class of a component.

    Raises:
        ConfigError: the module or the class does not exist, or its instances are not values: a component is a class
            with ``@dataclass(frozen=True)``, so that equal ones compare equal and print as their constructor call.
    """
    try:
        found = imports.attribute(code.module, code.name)
    except ConfigError as error:
        raise ConfigError(f"{code}: {error}") from error
    if problem := _problem(found, code):
        raise ConfigError(f"{code} is no component: expected a class with @dataclass(frozen=True), {problem}")
    return found


def _problem(found: object, code: CodeName) -> str:
    """Why something is not the class of a component; "" if it is one."""
    if not inspect.isclass(found):
        return f"got {shown(found)}"
    if not imports.defined_in(found, code.module):
        return f"got one imported into {code.module}; write python:{found.__module__}:{found.__qualname__}"
    if inspect.isabstract(found):
        missing: Collection[str] = getattr(found, "__abstractmethods__", ())
        return f"got an abstract class; implement {', '.join(sorted(missing))}"
    if not dataclasses.is_dataclass(found):
        return "got a class that is no dataclass"
    frozen = getattr(found, "__dataclass_params__").frozen  # noqa: B009  # not part of the type
    return "" if frozen else "got a dataclass whose fields may change"


def spelled(value: object) -> object:
    """The value, with each component of another package in it replaced by something that prints as its notation."""
    if type(value) is tuple or type(value) is list:
        parts = [spelled(part) for part in value]
        return value if all(map(operator.is_, parts, value)) else type(value)(parts)
    if not dataclasses.is_dataclass(value) or isinstance(value, type | Unloaded):
        return value
    fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    changed = {name: part for name, old in fields.items() if (part := spelled(old)) is not old}
    made = copy.copy(value) if changed else value
    for name, part in changed.items():
        object.__setattr__(made, name, part)  # without the constructor, which would refuse it
    code, text = _code_of(type(value)), repr(made)
    return (
        made
        if code is None or not text.startswith(f"{code.name}(")
        else Unloaded(str(code) + text[len(code.name) :], ())
    )


def _code_of(kind: type) -> CodeName | None:
    """The name of a class of another package; None for ours, and for one that its module does not have by name."""
    module, name = kind.__module__, kind.__qualname__
    ours = module.partition(".")[0] == "abkd"
    if ours or module == "__main__" or getattr(sys.modules.get(module), name, None) is not kind:
        return None
    return CodeName(module, name)


def registered() -> Mapping[str, list[EntryPoint]]:
    """The entry points of the group ``abkd.components``, by name; reads metadata and imports nothing."""
    return _registered(tuple(sys.path))


def entry_point(name: str) -> CodeName | None:
    """The code that an installed package has registered under this name, not imported; None if there is none.

    Raises:
        ConfigError: several packages have registered the name, or it does not stand for a class.
    """
    found = {(_package(each), each.value): each for each in registered().get(name, ())}
    if len(found) > 1:
        listed = " and ".join(f"{package} ({value})" for package, value in sorted(found))
        first = min(value for _, value in found)
        raise ConfigError(
            f"{name}: expected one component of this name, got several: {listed}; write the one that you mean as "
            f"python:{first}(...), or remove the other package"
        )
    for package, value in found:
        code = CodeName.read(f"{imports.PREFIX}{value}")
        if code is None:
            raise ConfigError(f"{name}: expected package.module:Name in the entry point of {package}, got {value!r}")
        return code
    return None


@lru_cache(maxsize=1)
def _registered(_: tuple[str, ...]) -> Mapping[str, list[EntryPoint]]:
    from importlib.metadata import entry_points  # takes longer to import than everything else here

    found: dict[str, list[EntryPoint]] = {}
    for each in entry_points(group=GROUP):
        found.setdefault(each.name, []).append(each)
    return found


def _package(each: EntryPoint) -> str:
    return each.dist.name if each.dist is not None else "an unnamed package"
