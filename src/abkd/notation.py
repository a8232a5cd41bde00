"""One way to write a component: its constructor call, the same in Python, in YAML and on the command line.

    AlphaBeta(alpha=0.2, beta=0.7)
    anneal(ForwardKL(), AlphaBeta(0.2, 0.7), shape='cosine')
    Standardized(python:my_package.losses:Mine(0.5))

The string is read as a syntax tree and never evaluated: it can call only what abkd exports for this, and components of
other packages, by their module or by the name that their package registers (see :mod:`abkd.outside`).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import logging
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from abkd import outside
from abkd.errors import ConfigError
from abkd.imports import CodeName
from abkd.outside import Unloaded

logger = logging.getLogger("abkd")

_COMPONENT_MODULES = (
    "abkd.data.images.augmentation",
    "abkd.divergences",
    "abkd.schedules",
    "abkd.sources",
    "abkd.teachers",
    "abkd.terms",
)
_MAX_CHARACTERS = 10_000  # far more than any objective needs; keeps the recursive parsing shallow
_LARGEST = 2**63 - 1  # of integers; larger ones do not fit into a tensor or a JSON file
_NUMBERS = {"inf": float("inf"), "nan": float("nan")}  # accepted here, so that the constructor can reject them by name
_NICKNAMES = {
    "kl": "ForwardKL() or ReverseKL()",
    "fkl": "ForwardKL()",
    "rkl": "ReverseKL()",
    "js": "JensenShannon()",
    "jsd": "JensenShannon()",
    "jeffreys": "WeightedSum((0.5, ForwardKL()), (0.5, ReverseKL()))",
    "tvd": "TotalVariation()",
    "ab": "AlphaBeta(alpha=0.2, beta=0.7)",
}


@cache
def components() -> types.MappingProxyType[str, Callable[..., object]]:
    """The concrete public components of abkd by name, which a string may call."""
    found: dict[str, Callable[..., object]] = {}
    for module_name in _COMPONENT_MODULES:
        if importlib.util.find_spec(module_name) is None:
            continue
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        found.update({name: getattr(module, name) for name in names if _is_component(getattr(module, name))})
    return types.MappingProxyType(found)


def parse(text: str) -> object:
    """The component (or plain value) that ``text`` denotes.

    Arguments may be numbers, strings, True, False, None, tuples, lists and further calls, positional or by name.
    ``python:package.module:Name(...)``, and a name that a package registers in the entry-point group
    ``abkd.components``, import that module, once everything else in the text is found to be valid.

    Raises:
        ConfigError: invalid syntax, an unknown component or argument (the message names the nearest known one), an
            argument that the component rejects, or code that cannot be imported or is no component.

    >>> parse("AlphaBeta(0.2, 0.7)")
    AlphaBeta(alpha=0.2, beta=0.7)
    """
    with _one_sentence(text):
        tree = _tree(text)
        reader = _Reader(load=False)
        value = reader.value(tree)
        return _Reader(load=True).value(tree) if reader.code else value


def read(text: str) -> object:
    """As :func:`parse`, but nothing is imported: a component that names other code is checked and left unloaded.

    Raises:
        ConfigError: as :func:`parse`, as far as abkd's own names and the syntax show it.

    >>> read("Standardized(python:my_package.losses:Mine(0.5))")
    Standardized(python:my_package.losses:Mine(0.5))
    """
    with _one_sentence(text):
        reader = _Reader(load=False)
        value = reader.value(_tree(text))
        return Unloaded(text.strip(), tuple(reader.code)) if reader.code else value


def render(value: object) -> str:
    """The notation of a component; ``parse(render(value)) == value`` for all that :func:`parse` can return.

    A component of another package is written with its module, however it was spelled when it was read.
    """
    return repr(outside.spelled(value))


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean ...?"`` if something known resembles ``name``, else ``"."``."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return f"; did you mean {by_lower[match[0]]}?" if match else "."


def _is_component(thing: object) -> bool:
    """Components are values: concrete dataclasses (base classes and helper functions are neither)."""
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing) and not inspect.isabstract(thing)


@contextmanager
def _one_sentence(text: str) -> Iterator[None]:
    try:
        yield
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        way_out = "write a constructor call such as AlphaBeta(alpha=0.2, beta=0.7)"
        if text.count("(") != text.count(")"):
            way_out += "; in a YAML list or mapping put it in quotes, since a comma ends the value"
        raise ConfigError(f"cannot read {_shortened(text)}: {way_out}") from error


def _tree(text: str) -> ast.expr:
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"expected a component of at most {_MAX_CHARACTERS} characters, got {len(text)}")
    return ast.parse(outside.as_python(text.strip()), mode="eval").body


def _written(node: ast.expr) -> str:
    return outside.as_written(ast.unparse(node))


_UNLOADED = object()  # stands for a component while its code is not imported


class _Reader:
    """Reads the value of a syntax tree.

    Attributes:
        load: whether other code is imported; if not, a call that needs it is checked and has no value.
        code: the other code that was met.
    """

    def __init__(self, *, load: bool) -> None:
        self.load = load
        self.code: list[CodeName] = []

    def value(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return _checked_size(value)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                return _signed(sign, self.value(operand), node)
            case ast.Tuple(elts=items):
                return tuple(self.value(item) for item in items)
            case ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.Call(func=ast.Name() | ast.Attribute() as called, args=args, keywords=keywords):
                return self.call(_written(called), args, keywords)
            case ast.Name(id=name) if name in _NUMBERS:
                return _NUMBERS[name]
            case ast.Name() | ast.Attribute() if CodeName.read(_written(node)):
                raise _bare_name(_written(node))
            case ast.Name(id=name):
                self.find(name)
                raise _bare_name(name)
        raise ConfigError(
            f"{_shortened(_written(node))} is not a number, string, list or constructor call; other expressions are "
            "not evaluated"
        )

    def call(self, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> object:
        component, already = self.find(name), len(self.code)
        positional = [self.value(argument) for argument in args]
        named = {keyword.arg: self.value(keyword.value) for keyword in keywords if keyword.arg is not None}
        if len(named) != len(keywords):
            raise ConfigError(f"{name}(...): pass each argument once, by its own name")
        if component is None:
            return _UNLOADED
        signature = inspect.signature(component)
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            raise _wrong_arguments(name, signature, named, error) from error
        if not self.load and len(self.code) > already:
            return _UNLOADED
        expected = (TypeError, ValueError, ArithmeticError) if name in components() else Exception  # of other code: any
        try:
            return component(*positional, **named)
        except ConfigError:
            raise
        except expected as error:
            raise ConfigError(f"{name}: {error}") from error

    def find(self, name: str) -> Callable[..., object] | None:
        """The component of this name; None if it is other code that is not to be imported."""
        if name in components():
            return components()[name]
        code = CodeName.read(name) or _registered(name)
        self.code.append(code)
        return outside.component(code) if self.load else None


def _registered(name: str) -> CodeName:
    """The code that a package has registered under this name, which is none of ours."""
    if "." in name:
        last = name.rpartition(".")[2]
        raise ConfigError(
            f"{_shortened(name)}(...): write {last}(...) without anything before the name; a component of another "
            "package is python:package.module:Name(...)"
        )
    _warn_of_our_names()
    code = outside.entry_point(name)
    if code is None:
        raise _unknown(name)
    return code


@cache
def _warn_of_our_names() -> None:
    for name in sorted(components().keys() & outside.registered().keys()):
        value = outside.registered()[name][0].value
        logger.warning(
            "abkd: the entry point %s of another package is ignored, because abkd has a component of this name; write "
            "python:%s(...) for the other one",
            name,
            value,
        )


def _checked_size(value: object) -> object:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(
            f"an integer may have at most {len(str(_LARGEST))} digits here, got one of {value.bit_length()} bits"
        )
    return value


def _signed(sign: ast.unaryop, value: object, node: ast.expr) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{_shortened(_written(node))}: a sign is allowed only before a number")
    return -value if isinstance(sign, ast.USub) else value


def _bare_name(name: str) -> ConfigError:
    return ConfigError(f"a component is written as its constructor call: write {name}() instead of {name}")


def _unknown(name: str) -> ConfigError:
    known = [*components(), *outside.registered()]
    hint = f"; did you mean {_NICKNAMES[name.lower()]}?" if name.lower() in _NICKNAMES else nearest(name, known)
    return ConfigError(f"there is no component {name!r}{hint} Available: {', '.join(sorted(set(known)))}")


def _wrong_arguments(name: str, signature: inspect.Signature, named: Iterable[str], error: TypeError) -> ConfigError:
    known = [
        parameter.name for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    unknown = [argument for argument in named if argument not in known]
    if not unknown:
        return ConfigError(f"{name}: {error}; its signature is {_signature(name, signature)}")
    hint = nearest(unknown[0], known)
    return ConfigError(f"{name} has no argument {unknown[0]!r}{hint} Its signature is {_signature(name, signature)}")


def _signature(name: str, signature: inspect.Signature) -> str:
    """``AlphaBeta(alpha=0.2, beta=0.7)``: the call without type annotations."""
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return f"{name}{signature.replace(parameters=bare, return_annotation=signature.empty)}"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
