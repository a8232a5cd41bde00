"""Two commits in turns: the table's figures, and a worker that takes its turns."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import against
from benchmarks._machine import ROOT


def test_the_ratio_is_the_mean_over_rounds_of_the_median_quotient():
    rounds = [
        against.Round([100.0, 200.0, 100.0], [110.0, 220.0, 900.0], (500.0, 600.0)),
        against.Round([100.0, 100.0, 100.0], [90.0, 90.0, 90.0], (500.0, 700.0)),
    ]
    name, before, after, ratio, _, pairs, *peaks = against.line("run", rounds)
    assert (name, before, after, ratio, pairs, peaks) == ("run", "100.0", "100.0", "1.000", "6", ["500", "650"])


def test_the_interval_holds_one_if_nothing_changed():
    noise = 1 + 0.03 * np.random.default_rng(3).standard_normal((6, 4))
    low, high = against.interval(noise)
    assert 0.9 < low < 1 < high < 1.1


@pytest.mark.long
def test_a_worker_makes_a_step_for_each_line_and_ends_with_its_input():
    worker = ROOT / "benchmarks" / "_against_worker.py"
    command = [sys.executable, "-P", str(worker), *against.RUNS["vision tiny, ABKD"], "3"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": "/usr/bin"}
    done = subprocess.run(command, input="go\ngo\n", capture_output=True, text=True, env=environment, cwd=ROOT)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(replies) == 3, done.stderr[-2000:]  # ready, and two steps
    assert all(seconds > 0 for seconds, _ in replies[1:])
    assert replies[0][1] > 2**20
