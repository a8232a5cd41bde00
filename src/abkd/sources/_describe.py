"""Descriptions of a source: a tree to print, and a fingerprint to compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from abkd.schedules import Schedule, is_number, stages
from abkd.sources._combine import Mix
from abkd.sources._leaves import Dataset, StudentSamples
from abkd.sources._teacher_samples import TeacherSamples
from abkd.sources._types import Source

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

_COUNTED: tuple[tuple[type[Source], str, str], ...] = (
    (Dataset, "dataset", "{:,} sequences"),
    (TeacherSamples, "teacher", "{:,} sequences stored"),
    (StudentSamples, "student", "for {:,} prompts"),
)
_LONGEST = 60  # characters of a value that are shown


def tree(source: Source | Schedule, counts: Mapping[str, int]) -> Tree:
    """The source with its parts below it.

    Args:
        counts: number of items by origin: "dataset", sequences in the data; "teacher", sequences stored; "student",
            prompts. An origin that is not in it is shown without a number.
    """
    from rich.tree import Tree

    root = Tree(_label(source, counts))
    _grow(root, source, counts)
    return root


def _grow(branch: Tree, source: Source | Schedule, counts: Mapping[str, int]) -> None:
    for before, part in _branches(source):
        _grow(branch.add(_label(part, counts, before)), part, counts)


def _branches(source: Source | Schedule) -> list[tuple[str, Source | Schedule]]:
    """The parts, each with the label in front of it."""
    if isinstance(source, stages):
        total = sum(share for share, _ in source.parts)
        return [(f"{share / total:.3g} of the run  ", part) for share, part in source.parts]
    if isinstance(source, Mix):
        share = source.share
        number = isinstance(share, int | float)
        texts = (f"{share:.3g}", f"{1 - share:.3g}") if number else (repr(share), "otherwise")
        return [(f"{text}  ", part) for text, part in zip(texts, source.parts, strict=True)]
    return [("", part) for part in source.parts] if isinstance(source, Source) else []


def _label(source: Source | Schedule, counts: Mapping[str, int], before: str = "") -> Text:
    from rich.text import Text

    text = Text(before, style="dim").append(type(source).__name__, style="bold not dim")
    text.append(_settings(source), style="not dim")
    for kind, origin, words in _COUNTED:
        if isinstance(source, kind) and origin in counts:
            text.append(f"  {words.format(counts[origin])}")
    return text


def _settings(source: Source | Schedule) -> str:
    """The arguments that are neither sources nor shown elsewhere in the tree."""
    if not isinstance(source, Source) or isinstance(source, Mix) or not dataclasses.is_dataclass(source):
        return ""
    values = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    shown = [f"{name}={_short(value)}" for name, value in values.items() if _is_setting(value)]
    return f"({', '.join(shown)})" if shown else ""


def _is_setting(value: object) -> bool:
    return value is not None and not isinstance(value, Source | tuple)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def fingerprint(source: Source | Schedule, data_fingerprint: str) -> str:
    """A hash (16 hex digits) of the source and the data it draws from, the same on every machine."""
    text = json.dumps([_canonical(source), data_fingerprint])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(value: object) -> object:
    """A JSON value that is the same for equal values: 1 is 1.0."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: _canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    return float(value) if is_number(value) else value if value is None or isinstance(value, str) else repr(value)
