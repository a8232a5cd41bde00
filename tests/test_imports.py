"""User code: installed, or a file in the working directory; and the error that names where it was searched."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from abkd import imports
from abkd.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


def test_a_file_of_the_working_directory_is_loaded_by_its_path(here, caplog):
    (here / "my_own_nets.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Net:\n    width: int = 4\n"
    )
    before = list(sys.path)
    assert imports.locate("my_own_nets") == here / "my_own_nets.py"
    assert "my_own_nets" not in sys.modules
    with caplog.at_level(logging.INFO, logger="abkd"):
        assert imports.attribute("my_own_nets", "Net")().width == 4
    assert f"importing my_own_nets from {here / 'my_own_nets.py'} for python:my_own_nets:Net" in caplog.text
    assert sys.path == before
    assert imports.load("my_own_nets") is imports.load("my_own_nets")


def test_another_working_directory_has_another_file(here, monkeypatch):
    for name in ("one", "two"):
        (here / name).mkdir()
        (here / name / "nets_by_place.py").write_text(f"place = {name!r}\n")
        monkeypatch.chdir(here / name)
        assert imports.attribute("nets_by_place", "place") == name


def test_what_is_installed_comes_first(here):
    (here / "json.py").write_text("raise SystemExit('the wrong one')\n")
    (here / "xml").mkdir()
    (here / "xml" / "dom.py").write_text("raise SystemExit('the wrong one')\n")
    assert imports.locate("json.decoder") == Path(sys.modules["json.decoder"].__file__ or "")
    assert hasattr(imports.load("xml.dom"), "Node")


def test_a_package_is_found_without_running_it(here, monkeypatch):
    (here / "lib" / "pack").mkdir(parents=True)
    (here / "lib" / "pack" / "__init__.py").write_text("raise RuntimeError('was run')\n")
    (here / "lib" / "pack" / "nets.py").write_text("")
    monkeypatch.syspath_prepend(here / "lib")
    assert imports.locate("pack.nets") == here / "lib" / "pack" / "nets.py"
    with pytest.raises(ConfigError, match=r"pack\.nets .* cannot be imported: RuntimeError: was run"):
        imports.load("pack.nets")


def test_the_error_says_where_was_looked_and_the_way_out(here):
    (here / "folder").mkdir()
    (here / "needs.py").write_text("import blocks_beside\n")
    (here / "blocks_beside.py").write_text("")
    (here / "leaves.py").write_text("raise SystemExit(0)\n")
    (here / "short.py").write_text("def large(): ...\n")
    for name, said in {
        "absent": rf"not installed, and there is no file {here / 'absent.py'}; check the name",
        "folder": rf"{here / 'folder'} is a folder: install the package",
        "short.py": "write short, without .py",
        "../short": "named as in an import",
        "needs": r"No module named 'blocks_beside' \(blocks_beside\.py is in the working directory.*PYTHONPATH=\.",
        "leaves": "cannot be imported: SystemExit",
    }.items():
        with pytest.raises(ConfigError, match=said):
            imports.load(name)
        assert name not in sys.modules
    with pytest.raises(ConfigError, match=r"short .* has no 'small'; it defines large"):
        imports.attribute("short", "small")
