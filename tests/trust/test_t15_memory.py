"""Peak memory, measured in a separate process: ``[N, V]`` is never allocated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
N, V, H = 1024, 50_000, 64
DENSE_MB = N * V * 4 / 2**20

SCRIPT = """
import sys, torch
from abkd.divergences import AlphaBeta
from abkd.ops import Head, ChunkPlan, Projected, linear_divergence
from benchmarks import _machine  # not ru_maxrss alone: a process inherits that of the one which started it

torch.set_num_threads(1)
n, v, h, impl, rows = *map(int, sys.argv[1:4]), sys.argv[4], int(sys.argv[5])

def call(n, impl):
    student = Projected(hidden[:n], Head(weight))
    out = linear_divergence(student, Projected(other[:n], Head(teacher)), AlphaBeta(0.2, 0.7), targets=targets[:n],
                            ce_weight=0.5, impl=impl, plan=ChunkPlan(rows, False))
    out.loss.backward()

hidden, weight = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
other, teacher, targets = torch.randn(n, h), torch.randn(v, h), torch.randint(v, (n,))
call(2, "chunked")  # libraries, and the gradients, which are results
print(_machine.peak_above(lambda: call(n, impl), "cpu")[0] / 2**20)
"""


def extra_mb(impl: str, rows_per_chunk: int) -> float:
    arguments = [N, V, H, impl, rows_per_chunk]
    script = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=250, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_the_logits_of_all_rows_are_never_in_memory() -> None:
    extra = extra_mb("chunked", 32)
    print(f"chunked: {extra:.0f} MB beside inputs and results; one [N, V] float32 tensor has {DENSE_MB:.0f} MB")
    assert extra < 0.25 * DENSE_MB


@pytest.mark.slow
def test_the_reference_does_hold_them_so_the_measurement_can_tell() -> None:
    extra = extra_mb("reference", 32)
    print(f"reference: {extra:.0f} MB")
    assert extra > 2 * DENSE_MB
