"""A run whose teacher is derived from its student: resumed, it continues as if it had never been interrupted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from abkd.teachers import EMA, AdapterOff, Snapshot
from training_parts import gap, llama, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def a_run(path: Any, spec: Any) -> Any:
    from peft import LoraConfig

    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
    options = {"save_strategy": "steps", "save_steps": 4, "ce_weight": 0.5, "teacher": spec, "max_steps": 6}
    options |= {} if isinstance(spec, EMA) else {"peft_config": lora}
    return trainer(path, llama(0, attention_dropout=0.1), teach=(), **options)


@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize("spec", [EMA(0.8), Snapshot(3), AdapterOff()], ids=repr)
def test_a_resumed_run_is_the_same_run(spec, tmp_path):
    one = a_run(tmp_path, spec)
    one.train()
    other = a_run(tmp_path, spec)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert gap(one.model, other.model) == 0
    mine, theirs = one.models.teacher.state_dict(), other.models.teacher.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert bool(mine) == (spec != AdapterOff())
    distances = [record["divergence"] for record in one.state.log_history if "divergence" in record]
    assert len(distances) == 6
    assert min(distances[1:]) > 1e-4
