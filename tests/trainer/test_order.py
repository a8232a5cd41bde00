"""The order of the rows: every row once per epoch, another order each epoch, empty rows last and without a target."""

from __future__ import annotations

import itertools
import random

import pytest

from abkd.data import Collator, prepare_dataset
from abkd.data.order import AsTheyCome, PadToMultiple, Shuffled, TrainOrder, train_order
from training_parts import rows, tokenizer


def dataset(count: int):
    return prepare_dataset(rows(count), tokenizer(), max_length=64)


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("multiple", [1, 4])
def test_an_epoch(by_length, multiple):
    data = PadToMultiple(dataset(10), multiple)
    assert len(data) == (12 if multiple == 4 else 10)
    order = train_order(data, batch_size=4, by_length=by_length, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        order.begin_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == list(range(len(data)))
        assert epochs[-1][10:] == list(range(10, len(data)))
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(order) == len(data)
    assert list(train_order(data, batch_size=4, by_length=by_length, seed=4)) != epochs[0]


def test_nobody_else_can_set_the_epoch():
    assert not hasattr(train_order(dataset(4), batch_size=2, by_length=True, seed=0), "set_epoch")


def test_shuffled_is_not_sorted():
    assert list(Shuffled(50, seed=0)) != list(range(50))


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 1000])
def test_an_order_is_that_of_random_sample(length):
    order = Shuffled(length, seed=5)
    order.epoch = 2
    assert list(order) == random.Random("5/2").sample(range(length), length)


def test_a_stream_s_order_takes_no_memory_however_long():
    order = TrainOrder(AsTheyCome(10**12, seed=0), 10**12)
    assert list(itertools.islice(order, 3)) == [0, 1, 2]


def test_an_empty_row_has_no_target():
    data = PadToMultiple(dataset(3).with_pretraining([[5, 6, 7]]), 4)
    assert data[2] == data.rows[2]
    assert len(data[3]["input_ids"]) == 1
    batch = Collator(1)([data[3]])["batch"]
    assert len(batch) == 0
    assert batch.pretrain_targets.numel() == 0
    together, alone = Collator(1)([data[1], data[3]])["batch"], Collator(1)([data[1]])["batch"]
    assert together.targets.tolist() == alone.targets.tolist()
