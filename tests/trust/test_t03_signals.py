"""SIGTERM and Ctrl-C at any step: a checkpoint at the end of the step, the documented exit code, an exact resume."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from abkd.errors import Interrupted
from training_parts import gap, gpt2, rows, trainer, weights

STEPS = 7
OPTIONS = {  # three steps an epoch; dropout, so that a random number more or less would show
    "max_steps": STEPS,
    "data": rows(6),
    "eval_dataset": rows(2),
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
}


class Raise(TrainerCallback):
    """Sends signals to this process at the start of a step."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self.step, self.signals = step, signals

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            for each in self.signals:
                os.kill(os.getpid(), each)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    made = trainer(directory, gpt2(0), **OPTIONS)
    made.train()
    return weights(made.model), records(directory)


def records(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(("_runtime", "_per_second"))}
        for line in lines
        if "train_runtime" not in line
    ]


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_stopped_after_any_step(tmp_path, undisturbed, step, name):
    before = signal.getsignal(name)
    made = trainer(tmp_path, gpt2(0), **OPTIONS, callbacks=[Raise(step, name)])
    with pytest.raises(Interrupted, match=f"stopped by {name.name} after step {step}; a checkpoint") as stop:
        made.train()
    assert stop.value.exit_code == 128 + name
    assert signal.getsignal(name) is before
    best = Path(made.state.best_model_checkpoint or "").name  # is also kept
    assert {path.name for path in tmp_path.glob("checkpoint-*")} - {best} == {f"checkpoint-{step}"} - {best}
    torch.manual_seed(99)
    resumed = trainer(tmp_path, gpt2(5), **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    assert gap(resumed.model, undisturbed[0]) == 0.0
    assert records(tmp_path) == undisturbed[1]


def test_a_second_ctrl_c_is_obeyed_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, **OPTIONS, callbacks=[Raise(2, signal.SIGINT, signal.SIGINT)]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_launcher_that_terminates_after_ctrl_c_is_not_impatience(tmp_path):
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGINT") as stop:
        trainer(tmp_path, **OPTIONS, callbacks=[Raise(2, *signals)]).train()
    assert stop.value.exit_code == 130
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path, undisturbed):
    made = trainer(tmp_path, gpt2(0), **OPTIONS, callbacks=[Raise(STEPS, signal.SIGTERM)])
    made.train()
    assert gap(made.model, undisturbed[0]) == 0.0


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    made, problems = trainer(tmp_path, max_steps=1), []

    def run() -> None:
        try:
            made.train()
        except ValueError as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not problems
    assert made.state.global_step == 1
