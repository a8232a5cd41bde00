"""Long work shows how far it is: a bar on a terminal, a line per log elsewhere; also from the command."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = ["--task", "image-classification", "--model_name_or_path", "cifar:resnet8", "--dataset_name", "digits"]
FLAGS += ["--kd_weight", "0", "--ce_weight", "1", "--max_steps", "3", "--use_cpu", "true", "--eval_fraction", "0"]


def run(directory: Path, terminal: bool) -> str:
    """What the command says on standard error."""
    command = [sys.executable, "-m", "abkd", "distill", *FLAGS, "--logging_steps", "1", "--output_dir", str(directory)]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
        assert process.wait(timeout=120) == 0
    os.close(ours)
    return said.decode()


def test_the_command_shows_how_far_it_is(tmp_path):
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install 'abkd[demo]'")
    assert "step 3/3" in run(tmp_path / "a", terminal=False)
    said = run(tmp_path / "b", terminal=True)
    assert "distilling" in said
    assert "3/3" in said
