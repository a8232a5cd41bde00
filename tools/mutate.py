"""Mutation testing: the share of mutants of ``divergences/`` and ``ops/`` that the tests detect, in a seeded sample.

The mutation operators are those of cosmic-ray, which has no seeded sampling and restarts torch for every mutant;
here each mutant is a fork. Tests run in a copy of the checkout, so the checkout itself never changes. Mutants of
annotations and docstrings, which no test can detect, are left out. ``ops/*.c`` is not mutated: it is tested against
Python.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "divergences": [
        "tests/divergences/test_alpha_beta.py",
        "tests/divergences/test_defaults.py",
        "tests/divergences/test_mixtures.py",
        "tests/divergences/test_transforms.py",
        "tests/divergences/test_batch_axis.py",
        "tests/divergences/test_known_defects.py",
        "tests/divergences/test_identity.py",
        "tests/divergences/test_limits.py",
        "tests/divergences/test_extremes.py",
        "tests/ops/test_equal_to_reference.py",
        "tests/laws/test_family.py",
    ],
    "ops": [
        "tests/ops/test_refusals.py",
        "tests/ops/test_divergence_loss.py",
        "tests/ops/test_rows_left_out.py",
        "tests/ops/test_row_metrics.py",
        "tests/ops/test_regressions.py",
        "tests/ops/test_buckets.py",
        "tests/ops/test_guard.py",
        "tests/ops/test_equal_to_reference.py",
        "tests/ops/test_no_teacher.py",
        "tests/ops/test_averaged.py",
        "tests/ops/test_teacher_share.py",
        "tests/ops/test_batch_axis_op.py",
        "tests/ops/test_top_k.py",
        "tests/ops/test_low_precision.py",
        "tests/ops/test_fused_rows.py",
    ],
}
CASES = 5  # of each test function, evenly spaced: few mutants are detected by some parameters only
IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is imported before the fork
LIMIT = 600.0  # seconds per mutant; one that hangs counts as detected


@dataclass
class Mutant:
    """A single change of one file, and the outcome of its tests."""

    path: str
    line: int
    operator: str
    change: str
    source: str
    outcome: str = ""
    seconds: float = 0.0


def main() -> int:
    """Sample the mutants, test each, print the score."""
    parser = argparse.ArgumentParser(description="a seeded sample of mutants of divergences/ and ops/")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="results; an existing file is resumed")
    given = parser.parse_args()
    given.out = given.out.absolute()
    known = {each["change"] for each in _read(given.out)}
    left = [mutant for mutant in drawn(given.mutants, given.seed) if mutant.change not in known]
    workers = [_forked(given.out, left[first :: given.workers]) for first in range(given.workers)]
    failed = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    outcomes = Counter(each["outcome"] for each in _read(given.out))
    score = 1 - outcomes["survived"] / max(1, outcomes.total())
    print(f"{outcomes.total()} mutants, {score:.1%} detected: {dict(outcomes)}")
    return max(failed)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _forked(out: Path, mutants: list[Mutant]) -> int:
    worker = os.fork()
    if worker:
        return worker
    with tempfile.TemporaryDirectory(prefix="abkd-mutants-") as place:
        _prepare(Path(place))
        for mutant in mutants:
            _judge(Path(place), mutant)
            with out.open("a") as lines:
                lines.write(json.dumps({**asdict(mutant), "source": ""}) + "\n")
        os.chdir("/")
    os._exit(0)


def drawn(count: int, seed: int) -> list[Mutant]:
    """Sample places, then one mutant of each: otherwise half of all mutants would be arithmetic operators."""
    draw = random.Random(seed)
    places: dict[tuple[str, object], list[tuple[str, int]]] = defaultdict(list)
    for package in TESTS:
        for path in sorted((ROOT / "src/abkd" / package).glob("*.py")):
            for operator, index, place in _mutations(path):
                places[str(path.relative_to(ROOT)), place].append((operator, index))
    order = list(places)
    draw.shuffle(order)
    made = (_mutant(*place, *draw.choice(places[place])) for place in order)
    return [mutant for mutant, _ in zip(filter(None, made), range(count), strict=False)]


def _operators() -> Iterator[tuple[str, Any]]:
    from cosmic_ray.plugins import get_operator, operator_names  # type: ignore[import-not-found]

    for name in operator_names():
        if "Variable" not in name:  # these need a list of variables
            yield name, get_operator(name)()


def _mutations(path: Path) -> Iterator[tuple[str, int, object]]:
    from cosmic_ray.ast import ast_nodes, get_ast  # type: ignore[import-not-found]

    tree = get_ast(path.read_text(encoding="utf-8"))
    for name, operator in _operators():
        found = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for index, place in enumerate(found):
            yield name, index, place


def _mutant(path: str, place: Any, name: str, index: int) -> Mutant | None:
    from cosmic_ray.mutating import mutate_code  # type: ignore[import-not-found]
    from cosmic_ray.plugins import get_operator  # type: ignore[import-not-found]

    before = (ROOT / path).read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(name)(), index)
    if after is None or _meaning(after) in (None, _meaning(before)):
        return None
    change = "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), path, path, lineterm="", n=0))
    return Mutant(path, place[0][0], name, change, after)


def _meaning(text: str) -> str | None:
    """The syntax tree without annotations, for comparison; None if the text does not parse."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def _copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _prepare(copy: Path) -> None:
    """Copy the checkout, and import the heavy packages once, before the forks."""
    for name in ("src", "tests", "pyproject.toml"):
        _copied(ROOT / name, copy / name)
    sys.dont_write_bytecode = True
    os.chdir(copy)
    sys.path[:0] = [str(copy / "src"), str(copy / "tests")]
    os.environ |= {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    import hypothesis  # noqa: F401
    import mpmath  # noqa: F401
    import numpy as np  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    assert "abkd" not in sys.modules


def _judge(copy: Path, mutant: Mutant) -> None:
    target = copy / mutant.path
    before = target.read_text(encoding="utf-8")
    target.write_text(mutant.source, encoding="utf-8")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            code = _tried(copy, TESTS[target.parent.name])
        finally:
            os._exit(code)  # the fork always ends here
    mutant.outcome = _waited(child, start)
    mutant.seconds = round(time.monotonic() - start, 1)
    target.write_text(before, encoding="utf-8")


def _waited(child: int, start: float) -> str:
    while time.monotonic() - start < LIMIT:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def _tried(copy: Path, tests: list[str]) -> int:
    import pytest

    os.environ["ABKD_TEST_CACHE"] = str(copy / "cache")
    silent = os.open(copy / "last.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        IMPORTED,
        "-m",
        "not slow and not long and not gpu",
    ]
    return int(pytest.main([*options, *tests], plugins=[_Quickly()]))


class _Quickly:
    """A pytest plugin that keeps a few cases of every test function, and a few more of every law."""

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        cases: dict[str, list[Any]] = defaultdict(list)
        for item in items:
            cases[item.nodeid.split("[")[0]].append(item)
        items[:] = [item for some in cases.values() for item in some[:: max(1, -(-len(some) // _most(some)))]]

    def pytest_runtest_call(self, item: Any) -> None:
        os.environ["ABKD_CACHE"] = os.environ["ABKD_TEST_CACHE"]  # the mutants share the compiled C code


def _most(some: list[Any]) -> int:
    return 30 if "laws" in some[0].nodeid else CASES


if __name__ == "__main__":
    raise SystemExit(main())
