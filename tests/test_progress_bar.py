"""Progress output: a bar on a terminal, a line per log elsewhere; also from the command line."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from abkd.cli._console import configure_logging
from abkd.trainer._callbacks import ProgressBar

FLAGS = ["--task", "image-classification", "--model_name_or_path", "cifar:resnet8", "--dataset_name", "digits"]
FLAGS += ["--kd_weight", "0", "--ce_weight", "1", "--max_steps", "3", "--use_cpu", "true", "--eval_fraction", "0"]


def on_a_terminal(directory: Path) -> str:
    """The command's output on standard error in a terminal."""
    command = [sys.executable, "-m", "abkd", "distill", *FLAGS, "--logging_steps", "1", "--output_dir", str(directory)]
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
        assert process.wait(timeout=280) == 0
    os.close(ours)
    return said.decode()


@pytest.mark.timeout(600)
def test_the_command_shows_how_far_it_is(tmp_path):
    """Elsewhere a line for each log: see test_run.py."""
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install 'abkd[demo]'")
    said = on_a_terminal(tmp_path / "run")
    assert "distilling" in said
    assert "3/3" in said


def shown(one_loss: bool, logs: dict[str, float]) -> str:
    """The terminal's content after a log and then a message in the middle of a run."""
    bar, seen = ProgressBar(one_loss=one_loss), io.StringIO()
    bar.console = Console(file=seen, force_terminal=True, width=160)
    state, args = TrainerState(max_steps=9), SimpleNamespace(disable_tqdm=False)
    bar.on_train_begin(args, state, TrainerControl())
    bar.on_log(args, state, TrainerControl(), logs=logs)
    configure_logging()
    logging.getLogger("abkd").info("abkd: a message that is longer than the terminal is wide, told during the run")
    bar.on_train_end(args, state, TrainerControl())
    return seen.getvalue()


def test_a_message_stands_above_the_bar():
    said = shown(True, {"loss": 1.0})
    assert re.search(r"\x1b\[2Kabkd: a message that is longer .* during the run\n", said)
    assert "abkd: a message" not in said[said.rindex("distilling") :]


@pytest.mark.parametrize("one_loss", [True, False])
def test_held_out_losses_that_do_not_compare_are_not_one_curve(one_loss):
    said = shown(one_loss, {"eval_loss": 3.5, "eval_perplexity": 66.0})
    assert ("eval_loss 3.5" in said) == one_loss
    assert "66" in said
