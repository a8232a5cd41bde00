"""The amount and side of padding change neither loss nor gradient."""

from __future__ import annotations

import pytest
import torch

from abkd.data import Collator, prepare_dataset
from task_parts import gradient, losses, task_of
from tiny_parts import make_model
from training_parts import SHORT, gap, gpt2, rows, tokenizer, trainer, weights


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@pytest.mark.parametrize("every_position", [False, True], ids=["completion", "every position"])
def test_padding_changes_nothing(family, every_position):
    student, teach = make_model(family), make_model(family)
    with torch.no_grad():
        for parameter in teach.parameters():
            parameter.mul_(0.7)
    data = [{"text": row["prompt"] + row["completion"]} for row in rows(3)] if every_position else rows(3)
    examples = list(prepare_dataset(data, tokenizer(), max_length=64))
    task = task_of(student, teach)
    expected, slope = None, None
    for side in ("right", "left"):
        for multiple in (1, 16, 64):
            batch = Collator(1, side, multiple)(examples)["batch"]
            out = losses(task, batch)
            found = gradient(student, out["loss"])
            if expected is None:
                expected, slope = out["loss"].item(), found
                assert expected > 1e-3
            assert out["loss"].item() == pytest.approx(expected, rel=1e-6)
            assert (found - slope).abs().max() <= 2e-6 * slope.abs().max()


def test_where_the_padding_is_changes_nothing(tmp_path):
    states = []
    for side in ("left", "right"):
        made = trainer(tmp_path / side, gpt2(0).eval(), source="StudentSamples(temperature=0)", max_steps=2, **SHORT)
        made.model.config.resid_pdrop = made.model.config.embd_pdrop = made.model.config.attn_pdrop = 0.0
        for module in made.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        made.collator = type(made.collator)(made.collator.pad_token_id, padding_side=side)
        made.train()
        states.append(weights(made.model))
    assert gap(*states) < 1e-5
