"""The mathematics needs only torch, and ``--help`` not even that. (benchmarks/trust.py measures the time.)"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "datasets",
    "matplotlib",
    "pandas",
    "peft",
    "pydantic",
    "rich",
    "transformers",
    "triton",
    "typer",
    "yaml",
}


STEPS = (
    "import torch",
    "import abkd, abkd.divergences, abkd.ops; abkd.AlphaBeta(0.2, 0.7); abkd.linear_divergence",
    "import yaml",
)


@pytest.fixture(scope="module")
def modules() -> list[set[str]]:
    """Top-level modules of a fresh interpreter after each of the steps."""
    report = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    code = "\n".join(["import json, sys", *(f"{step}\n{report}" for step in STEPS)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def test_importing_the_mathematics_loads_torch_and_nothing_heavy(modules):
    of_torch, of_ours, _ = modules
    assert "torch" in of_torch
    assert of_ours & HEAVY <= of_torch


def test_the_alarm_above_can_ring(modules):
    _, of_ours, of_yaml = modules
    assert "yaml" in of_yaml - of_ours


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import json, sys; sys.argv = ['abkd', '--help']\n"
        "from abkd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"torch", "transformers", "datasets", "numpy", "pydantic"}.isdisjoint(loaded)
