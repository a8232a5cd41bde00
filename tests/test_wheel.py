"""The wheel: built, installed outside the checkout, and used."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network by the installed build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    return next(folder.glob("abkd-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel's contents only."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def test_it_holds_the_package_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "abkd").rglob("*.py")}
    assert sources <= set(names)
    assert {"abkd/py.typed", "abkd/ops/rows.c"} <= set(names)
    assert {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "abkd" / "recipes").rglob("*.yaml")} <= set(
        names
    )
    assert any(name.startswith("abkd/recipes/") and name.endswith(".yaml") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"abkd"}


def test_it_is_used_from_where_it_was_installed(installed: Path, tmp_path: Path):
    code = "import abkd; print(abkd.__file__, abkd.AlphaBeta(0.2, 0.7))"
    output = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert str(installed) in output
    assert "AlphaBeta" in output


def test_its_command_answers(installed: Path, tmp_path: Path):
    output = run(sys.executable, installed / "bin" / "abkd", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert all(verb in output for verb in ("distill", "shrink", "show", "demo"))


def test_python_dash_m_is_the_same_command(installed: Path, tmp_path: Path):
    assert "distill" in run(sys.executable, "-m", "abkd", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
