"""Write ``docs/methods.md``: the components of a loss and the shipped recipes, from docstrings and recipes.

With ``--check``, only compare.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from abkd.divergences import Divergence
from abkd.notation import components
from abkd.recipe import load, shipped
from abkd.schedules import Controller, Schedule
from abkd.tasks import task_of
from abkd.terms import LossTerm, RowFunction

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
INTRODUCTION = """\
# Methods

Every published method is a configuration of one objective: a divergence, terms, weights and schedules. This page lists
the parts and the shipped recipes (`abkd distill NAME`, `abkd show NAME`). It is generated from docstrings and recipes
(`make api`); edit those. A recipe's header says what was published, and what was not run.
"""
KINDS: tuple[tuple[str, type], ...] = (
    ("Divergences and transforms", Divergence),
    ("Terms", LossTerm),
    ("Row weights and temperatures", RowFunction),
    ("Controllers", Controller),
    ("Schedules", Schedule),
)


def page() -> str:
    """The whole page."""
    used = {name: Path(str(file)).read_text(encoding="utf-8") for name, file in shipped().items()}
    lines = [INTRODUCTION]
    seen: set[str] = set()
    for title, kind in KINDS:
        found = {name: each for name, each in components().items() if isinstance(each, type) and issubclass(each, kind)}
        lines += [f"## {title}\n", "| name | what it is | source | recipes |", "|---|---|---|---|"]
        for name in sorted(found.keys() - seen):
            recipes = [recipe for recipe, text in used.items() if re.search(rf"^[^#]*\b{name}\(", text, re.MULTILINE)]
            lines.append(f"| `{name}` | {first_sentence(found[name])} | {sources(found[name])} | {some(recipes)} |")
        seen |= found.keys()
        lines.append("")
    lines += ["## Recipes\n", "| recipe | what it is | objective |", "|---|---|---|"]
    lines += [f"| `{name}` | {title_of(text)} | `{formula(name)}` |" for name, text in sorted(used.items())]
    return "\n".join(lines) + "\n"


def first_sentence(component: type) -> str:
    """The first line of a docstring, fit for a table."""
    line = re.sub(r":\w+:`(\w+)`", r"``\1``", (inspect.getdoc(component) or "").splitlines()[0])
    return re.sub(r"``(.*?)``", lambda code: "`" + code[1].replace("`", "") + "`", line).replace("|", "\\|")


def sources(component: type) -> str:
    """The papers that a component's docstring, or that of its file, names."""
    text = f"{component.__doc__} {inspect.getdoc(sys.modules[component.__module__]) if of_one_file(component) else ''}"
    found = dict.fromkeys(re.findall(r"arXiv[: ](\d{4}\.\d{4,5})", text))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in found)


def of_one_file(component: type) -> bool:
    """Whether the file of a component is that of one method."""
    return not component.__module__.rsplit(".", 1)[-1].startswith("_") and "terms" in component.__module__


def some(names: Sequence[str]) -> str:
    """Names of recipes; of many, the first and their number."""
    return ", ".join(f"`{name}`" for name in names) if len(names) <= 4 else f"`{names[0]}` and {len(names) - 1} others"


def title_of(recipe: str) -> str:
    """The first sentence of a recipe's header."""
    return " ".join(header(recipe)).split(". ")[0].rstrip(".").replace("|", "\\|")


def header(recipe: str) -> Iterator[str]:
    """The first paragraph of comments."""
    for line in recipe.splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            return
        yield text


def formula(name: str) -> str:
    """The objective of a recipe in one line."""
    recipe = load(name)
    task = task_of(str(recipe.config.get("task", "text-generation")))
    return recipe.objective().formula(task.row_noun).replace("|", "\\|")


def main() -> int:
    """Write or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    made = page()
    if not parser.parse_args().check:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made:
        return 0
    print("docs/methods.md is not what docstrings and recipes say: make api", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
