"""Six steps, and three steps plus three more after a restart, give bit-identical results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training_parts import EVERY_THIRD, StopAfter, by_family, gap, gpt2, llama, lora, rows, trainer, weights

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation that does not divide the epoch": {"gradient_accumulation_steps": 4, "data": rows(12)},
    "at the end of an epoch": {"data": rows(6)},
    "second epoch": {"data": rows(4)},
    "by length": {"group_by_length": True, "data": rows(4)},
    "packed": {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "data": rows(20)},
    "plain text": {"lm_coef": 0.5, "gradient_accumulation_steps": 2},
    "stages": {"divergence": "stages((0.4, ForwardKL()), (0.6, AlphaBeta(0.2, 0.7)))"},
    "annealed": {"divergence": "anneal(ForwardKL(), ReverseKL(), shape='cosine')", "ce_weight": "anneal(1.0, 0.0)"},
    "evaluated": {"eval_dataset": rows(3), "eval_strategy": "steps", "eval_steps": 1},
}


@by_family(CASES, "plain", "packed")
def test_resume_is_exact(tmp_path, case, family):
    options = {**EVERY_THIRD, **CASES[case]}
    if family is gpt2 and options.get("packing"):
        options["group_by_length"] = True  # another combination instead of the same again
    whole = trainer(tmp_path / "whole", family(0), **options)
    whole.train()
    trainer(tmp_path / "parts", family(0), **options, callbacks=[StopAfter(3)]).train()
    torch.manual_seed(99)  # a new process has other random numbers, and other initial weights
    resumed = trainer(tmp_path / "parts", family(5), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert gap(whole.model, resumed.model) == 0.0


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_resume_of_adapters_is_exact(tmp_path):
    """Only the adapters are saved; their dropout reads the random numbers of the run."""
    whole = trainer(tmp_path / "whole", peft_config=lora(), gradient_accumulation_steps=2, **EVERY_THIRD)
    start = weights(whole.model)
    whole.train()
    trainer(
        tmp_path / "parts", peft_config=lora(), gradient_accumulation_steps=2, **EVERY_THIRD, callbacks=[StopAfter(3)]
    ).train()
    torch.manual_seed(99)
    resumed = trainer(tmp_path / "parts", peft_config=lora(), gradient_accumulation_steps=2, **EVERY_THIRD)
    resumed.train(resume_from_checkpoint=True)
    assert gap(whole.model, start) > 0.0
    assert gap(whole.model, resumed.model) == 0.0


def test_evaluation_leaves_the_training_what_it_is(tmp_path):
    """So a resumed run need not repeat the initial evaluation, and the evaluation interval does not matter."""
    held_out = rows(3)
    never = trainer(tmp_path / "never", gpt2(0))
    never.train()
    often = trainer(
        tmp_path / "often", gpt2(0), eval_dataset=held_out, eval_on_start=True, eval_strategy="steps", eval_steps=1
    )
    often.train()
    assert gap(never.model, often.model) == 0.0


@pytest.mark.parametrize("data", [rows(12), rows(10)], ids=["at the end of an epoch", "within an epoch"])
def test_resuming_a_finished_run_changes_nothing(tmp_path, data):
    options = {**EVERY_THIRD, "lr_scheduler_type": "constant", "max_steps": 6, "data": data}
    whole = trainer(tmp_path, **options)
    whole.train()
    again = trainer(tmp_path, llama(5), **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert gap(whole.model, again.model) == 0.0
