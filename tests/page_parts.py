"""The project's pages: their fenced blocks, run as one module per page, and their links."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!--\s*(?P<note>[^\n]*?)\s*-->\s*\n)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
OF_THE_CODE = ("CONTRIBUTING.md", "architecture.md")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


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
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def run_page(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the Python blocks of a page make, run in order; dataclasses look their annotations up in it."""
    module = ModuleType(f"page_{path.stem.lower()}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in in_language(path, "python"):
        if not block.reason:
            padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
            exec(compile(padded, path, "exec"), vars(module))
    return module


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown text's headings, as GitHub makes them."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(FENCED.sub("", text)))
    return {title.replace(" ", "-") for title in titles}


def broken_links(path: Path) -> list[str]:
    """The links of a page to files or headings that do not exist; addresses on the web are not looked up."""
    text, found = path.read_text(encoding="utf-8"), []
    for link in LINK.findall(FENCED.sub("", text)):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def missing_files(path: Path) -> list[str]:
    """Source files that a page names in backticks and that exist neither in the package nor in the project.

    In a guide for users a bare name, without a folder, may be a file of theirs.
    """
    named = re.findall(r"`([\w./-]+\.(?:py|c|h|toml|txt))(?:::\w+)?`", FENCED.sub("", path.read_text(encoding="utf-8")))
    places = (path.parent, ROOT, ROOT / "src", ROOT / "src" / "abkd", ROOT / "tests")
    files = [file for file in dict.fromkeys(named) if "/" in file or path.name in OF_THE_CODE]
    files = [file for file in files if Path(file).stem not in ("name", "_name")]  # which stand for any name
    return [file for file in files if not any((place / file).is_file() for place in places)]
