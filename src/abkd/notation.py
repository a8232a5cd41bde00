"""One way to write a component: its constructor call, the same in Python, in YAML and on the command line.

    AlphaBeta(alpha=0.2, beta=0.7)
    anneal(ForwardKL(), AlphaBeta(0.2, 0.7), shape='cosine')

The string is read as a syntax tree and never evaluated: it can call only what abkd exports for this.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import types
from collections.abc import Callable, Iterable
from functools import cache

from abkd.errors import ConfigError

_COMPONENT_MODULES = (
    "abkd.data.images.augmentation",
    "abkd.divergences",
    "abkd.schedules",
    "abkd.sources",
    "abkd.teachers",
    "abkd.term",
    "abkd.row_weights",
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

    Raises:
        ConfigError: invalid syntax, an unknown component or argument (the message names the nearest known one), or an
            argument that the component rejects.

    >>> parse("AlphaBeta(0.2, 0.7)")
    AlphaBeta(alpha=0.2, beta=0.7)
    """
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"expected a component of at most {_MAX_CHARACTERS} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _value(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        way_out = "write a constructor call such as AlphaBeta(alpha=0.2, beta=0.7)"
        if text.count("(") != text.count(")"):
            way_out += "; in a YAML list or mapping put it in quotes, since a comma ends the value"
        raise ConfigError(f"cannot read {_shortened(text)}: {way_out}") from error


def render(value: object) -> str:
    """The notation of a component; ``parse(render(value)) == value`` for all that :func:`components` can build."""
    return repr(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean ...?"`` if something known resembles ``name``, else ``"."``."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[match[0]]}?" if match else "."


def _is_component(thing: object) -> bool:
    """Components are values: concrete dataclasses (base classes and helper functions are neither)."""
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing) and not inspect.isabstract(thing)


def _value(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return _checked_size(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return _signed(sign, _value(operand), node)
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords)
        case ast.Call(func=ast.Attribute(attr=name)):
            raise ConfigError(f"{_shortened(ast.unparse(node))}: write {name}(...) without anything before the name")
        case ast.Name(id=name) if name in _NUMBERS:
            return _NUMBERS[name]
        case ast.Name(id=name):
            raise _bare_name(name)
    raise ConfigError(
        f"{_shortened(ast.unparse(node))} is not a number, string, list or constructor call; other expressions are not "
        "evaluated"
    )


def _checked_size(value: object) -> object:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(
            f"an integer may have at most {len(str(_LARGEST))} digits here, got one of {value.bit_length()} bits"
        )
    return value


def _signed(sign: ast.unaryop, value: object, node: ast.expr) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{_shortened(ast.unparse(node))}: a sign is allowed only before a number")
    return -value if isinstance(sign, ast.USub) else value


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> object:
    component = components().get(name)
    if component is None:
        raise _unknown(name)
    positional = [_value(argument) for argument in args]
    named = {keyword.arg: _value(keyword.value) for keyword in keywords if keyword.arg is not None}
    if len(named) != len(keywords):
        raise ConfigError(f"{name}(...): pass each argument once, by its own name")
    signature = inspect.signature(component)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise _wrong_arguments(name, signature, named, error) from error
    try:
        return component(*positional, **named)
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{name}: {error}") from error


def _bare_name(name: str) -> ConfigError:
    if name in components():
        return ConfigError(f"a component is written as its constructor call: write {name}() instead of {name}")
    return _unknown(name)


def _unknown(name: str) -> ConfigError:
    known = components()
    hint = f"; did you mean {_NICKNAMES[name.lower()]}?" if name.lower() in _NICKNAMES else nearest(name, known)
    return ConfigError(f"there is no component {name!r}{hint} Available: {', '.join(sorted(known))}")


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
