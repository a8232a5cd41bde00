"""``kd_temperature`` changes the loss, and T² keeps the gradient's scale if it is enabled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import abkd
from abkd import DistillConfig
from abkd.data import Collator, prepare_dataset
from task_parts import gradient, losses, task_of
from training_parts import llama, rows, tokenizer

TEMPERATURES = (0.5, 0.9, 4.0)


def at(temperature: float, **options: object) -> tuple[float, torch.Tensor]:
    batch = Collator(1)(list(prepare_dataset(rows(3), tokenizer(), max_length=64)))["batch"]
    student = llama(0)
    task = task_of(student, llama(1), abkd.JensenShannon(), temperature=temperature, **options)
    loss = losses(task, batch)["loss"]
    return loss.item(), gradient(student, loss)


def test_every_temperature_has_a_loss_of_its_own():
    found = [at(temperature)[0] for temperature in TEMPERATURES]
    assert all(abs(one - other) > 0.05 * max(one, other) for one, other in pairwise(found))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_square_is_a_factor_that_one_asks_for(temperature):
    plain, slope = at(temperature)
    scaled, scaled_slope = at(temperature, scale_by_temperature_squared=True)
    assert scaled == pytest.approx(temperature**2 * plain, rel=1e-6)
    torch.testing.assert_close(scaled_slope, temperature**2 * slope, rtol=1e-4, atol=1e-6)


def test_it_is_said():
    told = DistillConfig.__dataclass_fields__["scale_by_temperature_squared"].metadata["help"]
    assert "T²" in told or "kd_temperature²" in told
