"""The recorded runs of ``tools/golden.py``: their numbers change only if a change of results is intended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import golden  # noqa: E402  # it is no part of the package


@pytest.mark.slow
def test_each_recorded_run_is_repeated():
    done = subprocess.run([sys.executable, ROOT / "tools" / "golden.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_number_that_differs_is_named():
    before = json.loads(golden.RECORD.read_text())
    after = json.loads(golden.RECORD.read_text())
    run = after["images"]["resumed"]
    run["numbers"][3] += 0.5
    run["names"] = [f"name {place}" for place in range(len(run["numbers"]))]
    (line,) = golden.differences(before, after, tolerance=golden.TOLERANCE)
    assert line.startswith("images, resumed: 1 numbers differ, the first is name 3: ")
    after["images"]["resumed"]["numbers"].pop()
    assert "numbers, got" in golden.differences(before, after, tolerance=golden.TOLERANCE)[0]


def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one():
    for modes in json.loads(golden.RECORD.read_text()).values():
        whole, resumed = (modes[mode]["numbers"] for mode in ("one process", "resumed"))
        differing = [place for place, (first, second) in enumerate(zip(whole, resumed, strict=True)) if first != second]
        assert differing == [len(whole) - 2]  # train_loss, which transformers takes over the steps since the resume
