"""Validation of ``sweep.json``: the values that its page needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from abkd.errors import DataError
from abkd.plots.records import is_number

_LARGEST = 1e100  # metrics are far smaller, and larger numbers cannot be drawn


def _is_measured(value: object) -> bool:
    return is_number(value) and abs(value) <= _LARGEST and (isinstance(value, float) or value.bit_length() < 63)


class _Kind:
    """A kind of plain value, with its name for messages."""

    def __init__(self, name: str, of: Callable[[object], bool]) -> None:
        self.name, self.of = name, of

    def or_null(self) -> _Kind:
        """The same kind, or null."""
        return _Kind(f"{self.name} or null", lambda value: value is None or self.of(value))


_Form: TypeAlias = "_Kind | list[_Form] | dict[str, _Form]"
"""The form of a value: one kind, a list of one form, or a mapping."""

_ANY = _Kind("anything", lambda _: True)
_TEXT = _Kind("a string", lambda value: isinstance(value, str))
_SEED = _Kind("an integer", lambda value: isinstance(value, int) and is_number(value))
_NUMBER = _Kind("a number", _is_measured)
_GRID = _Kind("a mapping or null", lambda value: value is None or isinstance(value, dict))
_SEEN = _Kind("all, base or empty", lambda value: value in ("all", "base", "", None))

# A mapping may hold more than is listed here; "name?" may be missing, and "*" matches every name.
_RESULT: dict[str, _Form] = {
    "last": {"*": {"value": _NUMBER.or_null()}},
    "best": {"*": {"value": _NUMBER.or_null()}},
    "teacher": {"*": _NUMBER.or_null()},
}
_SETTING: dict[str, _Form] = {
    "name": _TEXT,
    "runs": [{"directory": _TEXT, "failed?": _ANY, "result?": _RESULT}],
    "summary": {"*": {"*": {"mean": _NUMBER, "std": _NUMBER.or_null(), "values": [_NUMBER]}}},
}
_SWEEP: dict[str, _Form] = {
    "task": _TEXT,
    "seeds": [_SEED],
    "grid": _GRID,
    "unlabelled_classes": [_SEEN],
    "settings": [_SETTING],
}


def check_sweep(sweep: object, path: Path) -> None:
    """Reject an invalid record.

    Raises:
        DataError: something in it is missing or invalid; the message says where.
    """
    wrong = _wrong(sweep, _SWEEP, "")
    if wrong:
        raise DataError(
            f"{path} is not a valid record of a sweep: {wrong}. Restore it or remove it, then write the report again."
        )


def _wrong(value: object, form: _Form, place: str) -> str:
    """The first thing in a value that does not have this form; empty if there is none."""
    if isinstance(form, _Kind):
        return "" if form.of(value) else _expected(form.name, value, place)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _expected("a list", value, place)
        parts = [(each, form[0], f"{place}[{index}]") for index, each in enumerate(value)]
    elif not isinstance(value, dict):
        return _expected("a mapping", value, place)
    elif "*" in form:
        parts = [(each, form["*"], f"{place}.{name}") for name, each in value.items()]
    else:
        missing = [name for name in form if not name.endswith("?") and name not in value]
        if missing:
            return f"{place.lstrip('.') or 'it'} has no {missing[0]!r}"
        known = {name.rstrip("?"): each for name, each in form.items()}
        parts = [(value[name], each, f"{place}.{name}") for name, each in known.items() if name in value]
    return next(filter(None, (_wrong(*part) for part in parts)), "")


def _expected(what: str, value: object, place: str) -> str:
    return f"{place.lstrip('.') or 'it'} must be {what}, got {type(value).__name__}"
