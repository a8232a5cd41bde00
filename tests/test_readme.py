"""The README and the guides are tested: Python blocks run, recipes are read.

The blocks of one file share their names, as a reader would have them, and run in an empty directory. A block is left
out only with a reason, in a comment just before it: ``<!-- not run: needs a GPU -->``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!--\s*(?P<note>[^\n]*?)\s*-->\s*\n)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """One fenced block: its language, its text, the line of its first character, and the comment before it."""

    language: str
    code: str
    line: int
    note: str

    @property
    def reason(self) -> str:
        """The reason why it is not run; empty if it is."""
        return self.note.removeprefix("not run:").strip() if self.note.startswith("not run:") else ""


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text that name a language."""
    return [
        Block(found["language"], found["code"], text.count("\n", 0, found.start("code")) + 1, found["note"] or "")
        for found in BLOCK.finditer(text)
    ]


def in_language(path: Path, language: str) -> list[Block]:
    return (
        [block for block in blocks(path.read_text(encoding="utf-8")) if block.language == language]
        if path.exists()
        else []
    )


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [page for page in PAGES if in_language(page, "python")], ids=name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in in_language(path, "python"):
        if not block.reason:
            padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
            exec(compile(padded, path, "exec"), names)


RECIPES = [
    pytest.param(block.code, id=f"{name(path)}:{block.line}")
    for path in PAGES
    for block in in_language(path, "yaml")
    if not block.reason
]


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_in_the_pages_are_read(text: str, tmp_path: Path):
    from abkd.recipe import load

    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    load(file)


def test_the_readme_has_something_to_run():
    assert in_language(ROOT / "README.md", "python")
    assert in_language(ROOT / "README.md", "yaml")


def test_blocks_are_found_with_their_reasons():
    found = blocks(
        "Text\n\n```python\nx = 1\n```\n\n<!-- not run: needs a GPU -->\n```python\ny = 2\n```\n```\nplain\n```\n"
    )
    assert [(block.code, block.line, block.reason) for block in found] == [
        ("x = 1\n", 4, ""),
        ("y = 2\n", 9, "needs a GPU"),
    ]


def test_a_wrong_block_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 + 1 == 3\n```\n")
    with pytest.raises(AssertionError):
        test_python_blocks_run(page, tmp_path, monkeypatch)
