"""Every test that docs/trust.md and docs/security.md name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`((?:tests/)?[\w/]+\.py)(?:::(?:(\w+)::)?(test_\w+|Test\w+))?`")


def named(page: str) -> list[tuple[str, str, str]]:
    return NAMED.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["trust.md", "security.md"])
def test_every_test_that_is_named_exists(page):
    found = [(file, test) for file, _, test in named(page) if file.startswith("tests/")]
    assert len(found) > 15
    missing = []
    for file, test in found:
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        if not text or (test and not re.search(rf"^\s*(def|class) {test}\b", text, re.MULTILINE)):
            missing.append(f"{file}::{test}")
    assert not missing


def test_each_t_has_a_row_and_a_file():
    rows = re.findall(r"^\| T(\d+) \|", (ROOT / "docs" / "trust.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 23))
    files = {path.name[6:8] for path in Path(__file__).parent.glob("test_t*.py")}
    assert files == {f"{number:02}" for number in range(1, 23)}
