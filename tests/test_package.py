"""Properties of the package as a whole: import cost, public names, size limits."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import abkd

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_public_names_are_sorted_and_there():
    as_the_linter_sorts = sorted(abkd.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert list(abkd.__all__) == as_the_linter_sorts
    assert set(abkd.__all__) <= set(dir(abkd))
    for name in abkd.__all__:
        assert getattr(abkd, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = abkd.no_such_name


def test_the_api_page_documents_exactly_the_public_names():
    spec = importlib.util.spec_from_file_location("make_api_page", ROOT / "tools" / "make_api_page.py")
    assert spec is not None
    assert spec.loader is not None
    make_api_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api_page)
    documented = re.findall(r"^### (\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    public = [name for name in abkd.__all__ if not name.startswith("__")]
    for house in make_api_page.HOUSES:
        module = importlib.import_module(f"abkd.{house}")
        found = [name for name in module.__all__ if make_api_page.documented(getattr(module, name))]
        public += [name for name in found if name not in abkd.__all__ or getattr(abkd, name) is not vars(module)[name]]
    assert sorted(documented) == sorted(public)
    assert {"AlphaBeta", "StudentSamples", "RandomCrop", "load_images", "load_classifier", "sweep"} <= set(documented)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its ``def`` to its end, without the docstring."""
    first = function.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    documentation = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - documentation


def long_functions(text: str, limit: int = 40) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"{node.name}: {code_lines(node)} lines" for node in functions if code_lines(node) > limit]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert long_functions(text) == []


def test_the_ruler_above_measures():
    body = "\n".join(f"    x = {number}" for number in range(41))
    assert long_functions(f"def f():\n    '''Two\n\n    lines.'''\n{body}\n") == ["f: 42 lines"]


def project_texts() -> dict[Path, str]:
    """Every text file that git tracks or would track; outside a checkout, the files next to the tests."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        folders = [ROOT / name for name in ("src", "tests", "docs", "tools", "examples", ".ci")]
        paths = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    endings = {
        "",
        ".cff",
        ".css",
        ".html",
        ".jinja",
        ".json",
        ".md",
        ".py",
        ".svg",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
    }
    return {
        path: path.read_text(encoding="utf-8")
        for path in paths
        if path.is_file() and path.suffix in endings and "__pycache__" not in path.parts
    }


PLACES = {
    "a package registry's host": r"\b(pypi|pythonhosted|npmjs|anaconda|download\.pytorch)\.(org|com)\b",
    "an index setting": r"--(extra-)?index-url|--find-links|--trusted-host",
    "a path of one machine": r"(?<![\w.~/])/(root|home/[a-z]|Users/[A-Za-z]|work|opt|mnt)/\w",
}


@pytest.mark.parametrize("what", PLACES)
def test_the_project_runs_anywhere(what: str):
    pattern = re.compile(PLACES[what])
    hits = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path, text in project_texts().items()
        if path != Path(__file__) and (found := pattern.search(text))
    ]
    assert not hits, f"{what} is named"


def test_the_workflow_runs_targets_that_exist_on_every_python_that_is_claimed():
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if not workflow.exists():
        pytest.skip("not a checkout")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    commands = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = re.findall(r"\bmake ([\w-]+)", commands)
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"test", "test-oldest", "test-long"} == set(targets) <= set(known)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = [each.rpartition(" ")[2] for each in project["classifiers"] if "Python :: 3." in each]
    assert jobs["test"]["strategy"]["matrix"]["python"] == claimed
    assert project["requires-python"] == f">={claimed[0]}"
