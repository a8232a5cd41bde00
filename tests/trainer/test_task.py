"""Invariances of the loss: padding, the size to which vocabularies are padded, rows that train nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from abkd.data import Collator, TokenizedDataset, prepare_dataset
from abkd.tasks._start import covered_mass
from abkd.trainer._distillation import run_inside
from task_parts import gradient, losses, task_of
from training_parts import llama, rows, tokenizer


def test_a_batch_that_trains_nothing_gives_zero():
    example = next(iter(prepare_dataset(rows(1), tokenizer(), max_length=64)))
    silent = TokenizedDataset([{**example, "trained": [False] * len(example["trained"])}])
    student = llama(0)
    batch = Collator(1)([silent[0]])["batch"]
    assert len(batch) == 0
    out = losses(task_of(student, llama(1)), batch)
    assert out["loss"].item() == 0.0
    assert gradient(student, out["loss"]).abs().max() == 0.0
    assert out["rows"].item() == 0


def test_a_copy_of_a_trained_model_runs_itself():
    model = llama(0)
    run_inside(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    ids = torch.tensor([[1, 2, 3]])
    assert other(input_ids=ids).logits.abs().max() == 0
    assert model(input_ids=ids).logits.abs().max() > 0
    assert model(job=lambda: "inside") == "inside"


def test_covered_mass_is_that_of_the_dense_softmax():
    student, teach = llama(0), llama(1)
    batch = Collator(1)(list(prepare_dataset(rows(3), tokenizer(), max_length=64)))["batch"]
    inputs, chosen = batch.student.inputs, batch.student.rows
    top = teach(**inputs).logits.flatten(0, 1)[chosen].topk(10, -1).indices
    expected = student(**inputs).logits.flatten(0, 1)[chosen].softmax(-1).gather(-1, top).sum(-1).mean().item()
    made = task_of(student, teach)
    assert covered_mass(made.student, made.teacher, batch) == pytest.approx(expected, rel=1e-5)
