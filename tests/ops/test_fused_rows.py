"""The fused implementation: the same numbers, compiled once for all parameters; and life without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_parts import assert_same, problem

import abkd
from abkd.ops import Plan, plan_for
from abkd.ops._rows import compiler_missing

AB = abkd.AlphaBeta(0.2, 0.7)
WHY_NOT = compiler_missing(torch.device("cpu"))
needs_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
# importing torch's compiler warns about its own parts
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WITHOUT = """
import logging, torch, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
from abkd import *
from abkd.ops import plan_for
plan = plan_for(4096, 4096, torch.device("cpu"))
plan_for(4096, 4096, torch.device("cpu"))
print("planned compiled:", plan.compiled)
student, teacher = torch.randn(9, 50, requires_grad=True), torch.randn(9, 50)
losses = [linear_divergence(Dense(student), Dense(teacher), d, plan=Plan(4, compiled)).loss.item()
          for d in (ForwardKL(), TotalVariation()) for compiled in (False, True)]
print("same:", abs(losses[0] - losses[1]) < 1e-6 and abs(losses[2] - losses[3]) < 1e-6)
"""


def run_without(tmp_path: Path, **environment: str) -> str:
    """What a process prints that has this environment and none of another process's compiled functions."""
    known = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_where_torch_s_compiler_is_switched_off_the_eager_path_serves_and_says_so_once(tmp_path: Path) -> None:
    said = run_without(tmp_path, TORCHDYNAMO_DISABLE="1")
    assert said.count("abkd WARNING") == 1
    assert "TORCHDYNAMO_DISABLE is set" in said
    assert "planned compiled: False" in said
    assert "same: True" in said


def test_without_a_compiler_the_eager_path_is_planned_and_says_so_once(tmp_path: Path) -> None:
    """Then also a plan recorded where there was a compiler is carried out."""
    said = run_without(tmp_path, PATH=str(tmp_path), CXX="")
    assert said.count("abkd WARNING") == 1
    assert "no C++ compiler" in said
    assert "planned compiled: False" in said
    assert "same: True" in said


@pytest.mark.slow
@needs_compiler
def test_a_compiler_that_does_not_work_is_given_up(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    said = run_without(tmp_path, CXX=str(broken))
    assert "planned compiled: True" in said
    assert said.count("abkd WARNING") == 1
    assert "same: True" in said


def test_small_problems_are_not_worth_compiling() -> None:
    assert not plan_for(100, 1000, torch.device("cpu")).compiled


@pytest.mark.slow
@needs_compiler
@quiet
def test_compiled_equals_reference_and_nothing_but_its_sort_compiles_again() -> None:
    """α, β, the named points, weights, the temperature's value and the number of rows are run-time numbers."""
    from torch._dynamo.utils import counters

    def compiled() -> int:
        return counters["stats"]["unique_graphs"]

    plan, one = Plan(8, True), problem(21, bias=True)
    counters.clear()
    assert_same(one, AB, plan=plan)
    assert compiled() == 1
    named = (abkd.ForwardKL(), abkd.ReverseKL(), abkd.Hellinger())
    for divergence in (abkd.AlphaBeta(0.9, 0.1), abkd.AlphaBeta(0, 0), abkd.AlphaBeta(0, 0.4), *named):
        assert_same(one, divergence, plan=plan)
    for rows in (2, 8, 9, 17, 40):  # chunks of 1, 2, 5 and 8 rows
        assert_same(problem(rows, bias=True, row_weight=torch.arange(float(rows))), AB, plan=plan)
    assert_same(problem(21, 91), AB, plan=plan, kd_weight=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        one.solve(AB, plan=plan)
    problem(21, dtype=torch.bfloat16).solve(AB, plan=plan)
    assert compiled() == 1

    for ce_weight in (0.0, 0.3, 1.0):
        assert_same(one, AB, plan=plan, targets=one.targets, ce_weight=ce_weight)
    assert compiled() == 2
    for temperature in (2.0, 0.7, 4.0):
        assert_same(one, abkd.ReverseKL(), plan=plan, temperature=temperature)
    assert compiled() == 3


@pytest.mark.slow
@needs_compiler
@quiet
@pytest.mark.parametrize(
    "divergence",
    [
        abkd.JensenShannon(0.3),
        abkd.AlphaBeta(2, -1),
        abkd.WeightedSum((0.5, abkd.ForwardKL()), (2.0, abkd.TotalVariation())),
    ],
    ids=repr,
)
def test_other_sorts_compile_too(divergence: abkd.Divergence) -> None:
    one = problem(21, bias=True)
    assert_same(one, divergence, plan=Plan(8, True), targets=one.targets, ce_weight=0.5, temperature=2.0)


@pytest.mark.slow
@needs_compiler
@quiet
def test_impossible_classes_compiled() -> None:
    one = problem(21, dense_student=True, dense_teacher=True)
    with torch.no_grad():
        one.leaves["values"][:, :3] = -torch.inf
        one.teacher.values[:, 2:5] = -torch.inf
    assert_same(one, AB, plan=Plan(8, True))
    assert one.solve(abkd.ForwardKL(), plan=Plan(8, True)).loss == torch.inf


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_is_as_before_also_after_an_error(threads: int) -> None:
    class Broken(abkd.Divergence):
        def rows(self, log_p: torch.Tensor, log_q: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            raise RuntimeError(f"{torch.get_num_threads()} threads inside")

    torch.set_num_threads(threads)
    problem().solve(AB)
    with pytest.raises(RuntimeError, match=f"{1 if threads < 5 else 5} threads inside"):
        problem().solve(Broken())
    assert torch.get_num_threads() == threads
