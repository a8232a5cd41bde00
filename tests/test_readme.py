"""The README, the guides and CONTRIBUTING.md are tested: Python blocks run, recipes are read, links lead somewhere.

The blocks of one file share their names, as a reader would have them, and run in an empty directory. A block is left
out only with a reason, in a comment just before it: ``<!-- not run: needs a GPU -->``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from page_parts import PAGES, ROOT, blocks, broken_links, in_language, missing_files, name, run_page


@pytest.mark.parametrize("path", [page for page in PAGES if in_language(page, "python")], ids=name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_page(path, monkeypatch)


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


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"], ids=name)
def test_links_and_named_files_exist(path: Path):
    assert broken_links(path) == []
    assert missing_files(path) == []


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
        run_page(page, monkeypatch)


def test_a_broken_link_would_be_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# One `title`\n\n[a](#one-title) [b](page.md#two) [c](no.md) `ops/no.py` `ops/rows.c`\n")
    assert broken_links(page) == ["page.md#two", "no.md"]
    assert missing_files(page) == ["ops/no.py"]
