"""Repeated random faults, with a final result bit-identical to an undisturbed run; memory that does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from soak import DAMAGES, FAULTS, VARIANTS

HERE = Path(__file__).resolve().parent


def own_file_systems() -> bool:
    """Whether a small file system can be mounted here, so that a full one need not be imitated."""
    if sys.platform != "linux":
        return False
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def child(script: str, *words: object, timeout: float) -> dict[str, Any]:
    """The last output of ``script``, in a separate process, if possible with separate file systems."""
    mounted = script == "soak.py" and own_file_systems()
    command = [sys.executable, str(HERE / script), *map(str, words)]
    done = subprocess.run(
        ["unshare", "-rm", *command, "--tmpfs"] if mounted else command,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *(entry for entry in sys.path if entry)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr[-5000:]}


def soak(folder: Path, variant: str, seed: int, steps: int, timeout: float) -> dict[str, int]:
    found = child("soak.py", folder, variant, seed, steps, timeout=timeout)
    assert found["wrong"] == [], found["stderr"]
    assert found["same weights"]
    return found["happened"]


@pytest.mark.slow
def test_a_few_faults_of_every_kind(tmp_path):
    assert sum(soak(tmp_path, "replay", seed=1, steps=16, timeout=290).values()) >= 4


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("variant", VARIANTS)
def test_hundreds_of_steps_with_faults(tmp_path, variant):
    steps = 300 if variant == "replay" else 100
    happened = soak(tmp_path, variant, seed=0, steps=steps, timeout=1400)
    print(f"{variant}: {happened}")
    assert set(happened) >= {*FAULTS, *DAMAGES}


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_memory_is_flat(tmp_path):
    """Over 2000 steps; memory.py explains the bound."""
    found = child("memory.py", tmp_path, 2000, timeout=1400)
    print(f"{found['grown']} bytes of {found['resident']} in {found['steps']} steps, {found['allowed']} allowed")
    assert found["grown"] <= found["allowed"]
    assert found["leak seen"]
