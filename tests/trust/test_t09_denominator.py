"""The loss on generated text is divided by the generated tokens, not by those of the data."""

from __future__ import annotations

import pytest

from abkd import ForwardKL
from abkd.data import TokenizedDataset, prompt_of, with_completion
from abkd.generation import Sampling, write_completions
from training_parts import SHORT, gap, llama, tokenizer, trainer


def test_a_step_on_the_students_text_is_a_step_on_that_text_as_data(tmp_path):
    """And its loss is divided by the tokens that were generated, not by those of the data."""
    options = {**SHORT, "max_steps": 1, "per_device_train_batch_size": 12, "divergence": ForwardKL()}
    on_policy = trainer(tmp_path / "a", llama(0), source="StudentSamples(temperature=0)", **options)
    data = [on_policy.train_dataset[i] for i in range(12)]
    written = write_completions(
        llama(0), tokenizer(), [prompt_of(row) for row in data], Sampling(temperature=0), max_new_tokens=6, classes=340
    )
    tokens = sum(len(completion.ids) for completion in written)
    assert tokens != sum(sum(row["trained"]) for row in data)
    same = [with_completion(row, w.ids, 0, privileged=False) for row, w in zip(data, written, strict=True)]
    given = trainer(tmp_path / "b", llama(0), data=TokenizedDataset(same), **options)
    seen: list[float] = []
    original = on_policy.loss.losses

    def losses(batch, progress, totals, columns):
        seen.append(float(totals.rows))
        return original(batch, progress, totals, columns)

    on_policy.loss.losses = losses
    for each in (on_policy, given):
        each.train()
    assert seen == [tokens]
    assert gap(on_policy.model, given.model) < 1e-6
    assert on_policy.state.log_history[0]["loss"] == pytest.approx(given.state.log_history[0]["loss"], rel=1e-6)
