from __future__ import annotations

import random

import pytest
from torch.utils.data import DataLoader

from abkd.data import LengthGroupedSampler

LENGTHS = random.Random(7).choices(range(5, 500), k=1003)


def batches(sampler):
    order = list(sampler)
    return [order[i : i + sampler.batch_size] for i in range(0, len(order), sampler.batch_size)]


def padding(groups):
    return sum(max(LENGTHS[i] for i in group) * len(group) - sum(LENGTHS[i] for i in group) for group in groups)


def test_every_row_once():
    for size in (1, 8, 64, 1003, 5000):
        sampler = LengthGroupedSampler(LENGTHS, size)
        assert len(sampler) == 1003
        assert sorted(sampler) == list(range(1003))


def test_is_a_function_of_seed_and_epoch():
    first, again, other = (LengthGroupedSampler(LENGTHS, 8, seed=seed) for seed in (0, 0, 1))
    assert list(first) == list(first) == list(again)
    assert list(first) != list(other)
    before = list(first)
    first.set_epoch(1)
    assert list(first) != before
    first.set_epoch(0)
    assert list(first) == before


def test_groups_and_starts_with_the_longest():
    groups = batches(LengthGroupedSampler(LENGTHS, 8))
    shuffled = random.Random(0).sample(range(1003), 1003)
    assert padding(groups) < 0.1 * padding([shuffled[i : i + 8] for i in range(0, 1003, 8)])
    assert max(LENGTHS) in [LENGTHS[i] for i in groups[0]]
    middle = [max(LENGTHS[i] for i in group) for group in groups[1:-1]]
    assert middle != sorted(middle, reverse=True), "batches come in random order"


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_few_rows(count):
    assert sorted(LengthGroupedSampler(LENGTHS[:count], 4)) == list(range(count))


def test_accelerate_hands_it_the_epoch():
    from accelerate import Accelerator

    sampler = LengthGroupedSampler(LENGTHS, 8)
    loader = Accelerator(cpu=True).prepare(DataLoader(list(range(1003)), batch_size=8, sampler=sampler))
    loader.set_epoch(3)
    assert sampler.epoch == 3
