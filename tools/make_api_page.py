"""Write ``docs/api.md`` from the docstrings of everything in ``abkd.__all__``; with ``--check``, only compare.

A public name without its own docstring is an error, and then nothing is written.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType
from typing import is_typeddict

import abkd

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
INTRODUCTION = """\
# API reference

Everything below is imported as `abkd.name`; the entries under `abkd.terms`, `abkd.sources`, `abkd.teachers`,
`abkd.data.…`, `abkd.models.…`, `abkd.evaluation` and `abkd.sweep` are imported from there. This page is generated from
the docstrings (`make api`); edit those.

p is the teacher and q the student, the teacher always first. N rows, V classes, H width, B sequences, T positions.
"""
ORDER = (
    "divergences",
    "schedules",
    "ops",
    "notation",
    "terms",
    "objective",
    "sources",
    "teachers",
    "data.images",
    "data.images.augmentation",
    "models.vision",
    "models.cifar",
    "config",
    "trainer",
    "evaluation",
    "sweep",
)
HOUSES = (  # packages whose names are not exported from abkd itself, such as the ambiguous Dataset
    "terms",
    "sources",
    "teachers",
    "data.images.augmentation",
    "data.images",
    "models.vision",
    "models.cifar",
    "evaluation",
    "sweep",
)
LISTS = {"Args", "Attributes", "Raises"}
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$")


def main() -> int:
    """Write the page, or print how the stored one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the stored page, write nothing")
    check = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    stored = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if stored == text:
        return 0
    difference = difflib.unified_diff(
        stored.splitlines(), text.splitlines(), "docs/api.md", "docstrings", lineterm="", n=1
    )
    print(*list(difference)[:30], "docs/api.md differs from the docstrings: run `make api`", sep="\n", file=sys.stderr)
    return 1


def page() -> str:
    """The whole page: one section for each package, one entry for each public name."""
    packages: dict[str, list[str]] = defaultdict(list)
    for name in sorted(name for name in abkd.__all__ if not name.startswith("__")):
        packages[getattr(abkd, name).__module__.split(".")[1]].append(name)
    for package in HOUSES:
        module = importlib.import_module(f"abkd.{package}")
        packages[package] = sorted(name for name in module.__all__ if documented(getattr(module, name)))
    order = sorted(packages, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return "\n".join([INTRODUCTION, *(line for name in order for line in section(name, packages[name]))])


def documented(thing: object) -> bool:
    """Whether something gets an entry: functions and classes, but not a TypedDict, described where it is used."""
    return callable(thing) and not is_typeddict(thing)


def section(package: str, names: list[str]) -> Iterator[str]:
    """The lines of one package."""
    summary = inspect.cleandoc(importlib.import_module(f"abkd.{package}").__doc__ or "").split("\n\n")[0]
    yield f"## abkd.{package}\n\n{markdown(summary)}\n"
    home = importlib.import_module(f"abkd.{package}") if package in HOUSES else abkd
    for name in names:
        yield from entry(name, getattr(home, name))


def entry(name: str, thing: type | FunctionType) -> Iterator[str]:
    """The lines of one public name: its signature, its docstring, and its own documented methods."""
    yield f"### {name}\n\n```text\n{call(name, thing)}\n```\n\n{documentation(thing, name)}\n"
    if not inspect.isclass(thing):
        return
    for key, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if key.startswith("_") or not isinstance(function, FunctionType) or not function.__doc__:
            continue
        title = key if isinstance(member, property) else call(key, function)
        yield f"**`{' '.join(title.split())}`**  \n{documentation(function, f'{name}.{key}')}\n"


def documentation(thing: type | FunctionType, name: str) -> str:
    """The own docstring of ``thing`` as Markdown; one that a dataclass generates does not count."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    if not text or text.startswith(f"{thing.__name__}("):
        raise SystemExit(f"abkd.{name} has no docstring")
    return markdown(inspect.cleandoc(text))


def call(name: str, thing: type | FunctionType) -> str:
    """The signature of ``thing``, on one line if that is short."""
    parts = list(parameters(thing))
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def parameters(thing: type | FunctionType) -> Iterator[str]:
    """The parameters as written; for a dataclass with a foreign base (TrainingArguments), only our own fields."""
    bases = thing.__mro__[:-1] if inspect.isclass(thing) else ()
    foreign = [base for base in bases if is_dataclass(base) and not ours(base)]
    own = {key for base in bases if ours(base) for key in inspect.get_annotations(base)}
    named_only = False
    for key, parameter in inspect.signature(thing).parameters.items():
        if key == "self" or (foreign and key not in own):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            named_only = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not named_only:
            named_only = True
            yield "*"
        yield written(parameter)
    if foreign:
        yield f"**{foreign[0].__name__}"


def ours(thing: type) -> bool:
    """Whether ``thing`` is defined in abkd."""
    return thing.__module__.split(".")[0] == "abkd"


def written(parameter: inspect.Parameter) -> str:
    """``name: annotation = default``, independent of the Python version."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        annotation = getattr(parameter.annotation, "__forward_arg__", parameter.annotation)
        text += f": {annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    shown = "…" if repr(default).startswith("<factory") else getattr(default, "__name__", repr(default))
    return f"{text} = {shown}"


def markdown(text: str) -> str:
    """A Google-style docstring as Markdown: single backticks, bold section titles, section entries as a list."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    lines, current = [], ""
    for line in text.splitlines():
        if found := SECTION.match(line):
            current = found[1]
            lines += [f"**{current}**", ""]
            continue
        if line and not line.startswith(" "):
            current = ""
        lines.append(_in_section(line, current) if current else line)
    return "\n".join(lines).rstrip()


def _in_section(line: str, current: str) -> str:
    inner = line.removeprefix("    ")
    if current not in LISTS or not inner or inner.startswith(" "):
        return inner
    return re.sub(r"^(\**\w[\w ,.]*?)(?: \([^)]*\))?:", r"- `\1`:", inner)


if __name__ == "__main__":
    sys.exit(main())
