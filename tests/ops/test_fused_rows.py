"""The fused implementation: the same numbers, compiled once for all parameters; and the fallback without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exact import assert_same, sizes_of_rows
from op_parts import EVERY, problem

import abkd
from abkd.ops import ChunkPlan, _native, plan_chunks
from abkd.ops._compilers import compiler_missing, fused_by_torch
from abkd.ops._passes import _tail_gradient, _tail_logsumexp, _tensor, tail_gradient, tail_logsumexp
from abkd.ops._row_loss_spec import RowColumns, RowLossSpec
from abkd.ops._rows import _torch_compiled_block, blocks
from rounding import assert_rounded

AB = abkd.AlphaBeta(0.2, 0.7)
WHY_NOT = compiler_missing(torch.device("cpu"))
needs_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
# importing torch's compiler warns about its own parts
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WITHOUT = """
import logging, torch, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
from abkd.divergences import ForwardKL, TotalVariation
from abkd.ops import Dense, ChunkPlan, linear_divergence, plan_chunks
plan = plan_chunks(4096, 4096, torch.device("cpu"))
plan_chunks(4096, 4096, torch.device("cpu"))
print("planned compiled:", plan.compiled)
student, teacher = torch.randn(9, 50, requires_grad=True), torch.randn(9, 50)
losses = [linear_divergence(Dense(student), Dense(teacher), d, plan=ChunkPlan(4, compiled)).loss.item()
          for d in (ForwardKL(), TotalVariation()) for compiled in (False, True)]
print("same:", abs(losses[0] - losses[1]) < 1e-6 and abs(losses[2] - losses[3]) < 1e-6)
"""


def run_without(tmp_path: Path, **environment: str) -> str:
    """The output of a process with this environment and an empty cache of compiled functions."""
    known = {**os.environ, "ABKD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=1200,
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
    """A plan that was recorded with a compiler is then executed too."""
    said = run_without(tmp_path, PATH=str(tmp_path), CC="")
    assert said.count("abkd WARNING") == 1
    assert "no C compiler" in said
    assert "planned compiled: False" in said
    assert "same: True" in said


@needs_compiler
def test_a_compiler_that_does_not_work_is_given_up(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'error: no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    said = run_without(tmp_path, CC=str(broken))
    assert "planned compiled: True" in said
    assert said.count("abkd WARNING") == 1
    assert "no such luck" in said
    assert "same: True" in said


@needs_compiler
def test_what_was_compiled_is_kept_and_a_broken_file_is_said(tmp_path: Path) -> None:
    assert "abkd WARNING" not in run_without(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "native").iterdir()}
    assert len(kept) == 2  # the α-β family and total variation, no partial files
    assert "abkd WARNING" not in run_without(tmp_path, PATH=str(Path(_native.find_compiler() or "").parent))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for path in kept:
        path.write_bytes(b"not a library")
    said = run_without(tmp_path)
    assert "cannot load" in said
    assert "same: True" in said


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    said = run_without(tmp_path)
    assert "abkd WARNING" not in said
    assert "same: True" in said


def test_small_problems_are_not_worth_compiling() -> None:
    assert not plan_chunks(100, 1000, torch.device("cpu")).compiled


@needs_compiler
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_compiled_equals_reference(divergence: abkd.Divergence) -> None:
    plan, one = ChunkPlan(8, True), problem(21, bias=True)
    assert_same(one, divergence, plan=plan)
    assert_same(one, divergence, plan=plan, targets=one.targets, ce_weight=0.5)
    assert_same(one, divergence, plan=plan, targets=one.targets, ce_weight=0.5, temperature=2.0)
    spread = 1.0 if divergence.needs_float64 else 2.0  # q²/p may be more than float32 holds
    assert_same(problem(9, 1300, spread=spread, softcap=4.0), divergence, plan=plan)
    assert_same(problem(9, dtype=torch.float64), divergence, plan=plan, targets=one.targets[:9])


@needs_compiler
def test_every_parameter_is_a_run_time_number() -> None:
    """α, β, the named points, weights, the temperature and the number of rows and classes: one library."""
    plan, one = ChunkPlan(8, True), problem(21, bias=True)
    assert_same(one, AB, plan=plan)
    built = _native._library.cache_info().misses
    named = (abkd.ForwardKL(), abkd.ReverseKL(), abkd.Hellinger())
    for divergence in (abkd.AlphaBeta(0.9, 0.1), abkd.AlphaBeta(0, 0), abkd.AlphaBeta(0, 0.4), *named):
        assert_same(one, divergence, plan=plan)
    for rows in (1, 2, 8, 9, 17, 40):
        assert_same(problem(rows, bias=True, row_weight=torch.arange(float(rows))), AB, plan=plan)
    for temperature, weight in ((2.0, 0.0), (0.7, 1.0)):
        assert_same(
            problem(21, 91),
            AB,
            plan=plan,
            temperature=temperature,
            kd_weight=3.0,
            targets=one.targets,
            ce_weight=weight,
        )
    assert _native._library.cache_info().misses == built


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_compiled_and_eager_are_right_but_for_rounding(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    z = 3 * torch.randn(7, 3001, dtype=torch.float64)
    y = torch.cat([3 * torch.randn(3, 3001), z[3:5] + 1e-3 * torch.randn(2, 3001), z[5:]])
    z[5:, 0] = y[5:, 0] = 20.0
    z[:, 7:10] -= 60.0
    z, y, weight, targets = z.to(dtype), y.to(dtype), torch.rand(7, dtype=torch.float64), torch.randint(3001, (7,))
    wide = torch.promote_types(dtype, torch.float32)
    for divergence in EVERY:
        if not _native.serves(divergence, z, y):
            continue
        terms = RowLossSpec(divergence, 1.5, 0.2)
        exact = z.double().clone()
        want = blocks(exact, y.double(), targets, weight, terms, grad=True, compiled=False)
        row, pull, of_row = sizes_of_rows(divergence, z, y, targets, 1.5, 0.2)
        for compiled in (True, False):
            found = z.clone()
            got = blocks(found, y, targets, weight, terms, grad=True, compiled=compiled)
            assert_rounded(got.divergence, want.divergence, row, wide, name=f"{divergence!r}")
            if not isinstance(divergence, abkd.TotalVariation):  # its slope jumps where the models cross
                assert_rounded(found, exact, (weight[:, None] * pull).max(), name=f"{divergence!r}'s gradient")
            for name in ("student_entropy", "teacher_entropy", "cross_entropy"):
                assert_rounded(getattr(got, name), getattr(want, name), of_row, wide, name=name)
            assert torch.equal(got.agreement.double(), want.agreement.double())


@needs_compiler
def test_impossible_classes_compiled() -> None:
    one = problem(21, dense_student=True, dense_teacher=True)
    with torch.no_grad():
        one.leaves["values"][:, :3] = -torch.inf
        one.teacher.values[:, 2:5] = -torch.inf
    for divergence in (AB, abkd.JensenShannon(0.3), abkd.SkewForwardKL(), abkd.SkewReverseKL(), abkd.TotalVariation()):
        assert_same(one, divergence, plan=ChunkPlan(8, True))
    assert one.solve(abkd.ForwardKL(), plan=ChunkPlan(8, True)).loss == torch.inf
    with torch.no_grad():
        one.leaves["values"][3, 1] = torch.nan
    for divergence in EVERY:
        result = one.solve(divergence, plan=ChunkPlan(8, True))
        assert result.divergence[3].isnan()
        assert result.loss.isnan() or result.loss.isinf()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing torch's compiler warns about its own parts
@pytest.mark.parametrize(
    ("divergence", "shared", "each"),
    [
        (AB, False, False),
        (abkd.JensenShannon(0.3), False, False),
        (abkd.AlphaBeta(2, -1), False, True),
        (abkd.JensenShannon(), True, False),
        (abkd.JensenShannon(), True, True),
        (AB, False, True),
    ],
    ids=repr,
)
def test_as_torch_compiles_it_for_a_gpu(divergence: abkd.Divergence, shared: bool, each: bool) -> None:
    """The same function of tensors, compiled here for the CPU."""
    z, y, weight, targets = torch.randn(6, 400), torch.randn(6, 400), torch.rand(6), torch.randint(400, (6,))
    coefficients = torch.rand(6, 3, dtype=torch.float64) + 0.3
    coefficients[2, 1:] = 0.0
    columns = RowColumns(torch.rand(6) if shared else None, coefficients if each else None)
    terms = RowLossSpec(divergence, 2.0, 0.5)
    fused, plain = z.clone(), z.clone()
    got = _torch_compiled_block(fused, y, targets, weight, terms, grad=True, columns=columns)
    want = blocks(plain, y, targets, weight, terms, grad=True, compiled=False, columns=columns)
    assert got is not None
    assert torch.allclose(got.divergence.double(), want.divergence.double(), rtol=3e-6)
    assert torch.allclose(fused, plain, atol=1e-7)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("cold", [0.5, 0.3 + torch.rand(6)], ids=["one temperature", "one per row"])
def test_the_passes_over_one_model_as_torch_compiles_them_for_a_gpu(plain: bool, cold: float | torch.Tensor) -> None:
    z, soft, hard = torch.randn(6, 400), torch.randn(6), torch.randn(6) if plain else None
    z[0] = z[1, :7] = -torch.inf
    want = tail_logsumexp(z, cold, plain=plain, compiled=False)
    given = _tensor(cold, z)
    got = fused_by_torch(("tail_logsumexp", plain, given.ndim), _tail_logsumexp, z, given, plain)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    fused = z.clone()
    tail_gradient(z, want, cold, soft, hard, compiled=False)
    key = ("tail_gradient", plain, given.ndim)
    assert fused_by_torch(key, _tail_gradient, fused, want, given, soft, hard) is not None
    torch.testing.assert_close(fused, z)


@pytest.mark.parametrize(("threads", "rows", "inside"), [(1, 1000, 1), (2, 1000, 1), (5, 1000, 5), (2, 13, 2)])
def test_the_number_of_threads_is_as_before_also_after_an_error(threads: int, rows: int, inside: int) -> None:
    class Broken(abkd.Divergence):
        def rows(self, log_p: torch.Tensor, log_q: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            raise RuntimeError(f"{torch.get_num_threads()} threads inside")

    torch.set_num_threads(threads)
    problem(rows).solve(AB)
    with pytest.raises(RuntimeError, match=f"{inside} threads inside"):  # what torch does not share out is left alone
        problem(rows).solve(Broken())
    assert torch.get_num_threads() == threads
