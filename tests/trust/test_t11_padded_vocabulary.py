"""Vocabularies padded to different sizes are compared over their real tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import abkd
from abkd.errors import VocabularyError
from abkd.objective import Objective
from task_parts import gradient, losses
from training_parts import llama, tokenizer, trainer


def widened(model: Any, classes: int, *, loud: bool) -> Any:
    """The same model with more rows in its head, as padding to a round number makes them."""
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(classes, mean_resizing=False)
    with torch.no_grad():
        wider.lm_head.weight[len(model.lm_head.weight) :] = 5.0 if loud else 0.0
    return wider


def test_heads_padded_to_different_sizes_agree(tmp_path):
    """Equal distributions over the real tokens, with any values in the padded rows: loss 0."""
    base = llama(0, classes=360)
    student, teach = widened(base, 384, loud=True), widened(base, 400, loud=False)
    made = trainer(tmp_path, student, teach=teach)
    assert made.models.classes == max(tokenizer().get_vocab().values()) + 1 < 360
    for divergence in (abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL(), abkd.JensenShannon()):
        made.loss.objective = Objective(divergence=divergence).open()
        batch = made.data_collator([made.train_dataset[i] for i in range(4)])["batch"]
        out = losses(made.loss, batch)
        assert abs(out["loss"].item()) < 1e-7
        assert gradient(student, out["loss"]).abs().max() < 1e-7


def test_the_student_keeps_its_own_vocabulary(tmp_path):
    student = llama(0, classes=384)
    before = student.lm_head.weight[360:].detach().clone()
    made = trainer(tmp_path, student, teach=llama(3, classes=400), weight_decay=0.0)
    made.train()
    made.save_model()
    saved = type(student).from_pretrained(tmp_path)
    assert saved.lm_head.weight.shape == (384, 32)
    assert torch.equal(saved.lm_head.weight[360:], before)


def test_heads_that_are_too_small_are_refused(tmp_path):
    for student, teach, who in ((300, 400, "student"), (400, 300, "teacher")):
        with pytest.raises(VocabularyError, match=rf"the {who}'s head needs a row for each .* got 300"):
            trainer(tmp_path, llama(0, classes=student), teach=llama(1, classes=teach))
    with pytest.raises(VocabularyError, match=r"head needs a row for each .* got 300"):
        trainer(tmp_path, llama(0, classes=300), teach=llama(1, classes=300))
