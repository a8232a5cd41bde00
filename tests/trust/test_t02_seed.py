"""The same seed gives bit-identical results, another seed does not."""

from __future__ import annotations

import torch

from training_parts import gap, gpt2, llama, lora, teacher, trainer, weights


def test_two_runs_with_one_seed_are_equal_and_with_two_seeds_are_not(tmp_path):
    first, second, third = (trainer(tmp_path / str(i), gpt2(0), seed=seed) for i, seed in enumerate((1, 1, 2)))
    for each in (first, second, third):
        torch.manual_seed(5)
        each.train()
    assert gap(first.model, second.model) == 0.0
    assert gap(first.model, third.model) > 0.0


def test_the_seed_decides_the_adapters(tmp_path):
    """Independent of random numbers drawn before."""
    states = []
    for ambient in (1, 2):
        student, teach = llama(0), teacher()
        torch.manual_seed(ambient)
        states.append(weights(trainer(tmp_path, student, teach=teach, peft_config=lora()).model))
    assert gap(*states) == 0.0
