"""What the loss must not depend on: padding, the size to which vocabularies are padded, rows that train nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import abkd
from abkd.data import Collator, TokenizedDataset, prepare_dataset
from abkd.errors import VocabularyError
from abkd.models.language import CausalRows
from abkd.objective import Objective
from abkd.ops import plan_for
from abkd.teachers import LiveReader
from abkd.trainer._task import Task, Totals, covered_mass, run_inside
from tiny_parts import make_model
from training_parts import llama, rows, tokenizer, trainer


def losses(task: Task, batch: Any) -> dict[str, torch.Tensor]:
    return task.losses(batch, 0.0, Totals.of([batch], task.objective, 0.0))


def task_of(student: Any, teach: Any, divergence: Any = None, **options: Any) -> Task:
    objective = Objective(divergence=divergence or abkd.AlphaBeta(0.2, 0.7), **options)
    return Task(CausalRows(student), LiveReader(teach), objective, plan_for(64, 340, torch.device("cpu")))


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


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


def widened(model: Any, classes: int, *, loud: bool) -> Any:
    """The same model with more rows in its head, as padding to a round number makes them."""
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(classes, mean_resizing=False)
    with torch.no_grad():
        wider.lm_head.weight[len(model.lm_head.weight) :] = 5.0 if loud else 0.0
    return wider


def test_heads_padded_to_different_sizes_agree(tmp_path):
    """Same distributions over the tokens that exist, whatever stands in the rows that no token has: loss 0."""
    base = llama(0, classes=360)
    student, teach = widened(base, 384, loud=True), widened(base, 400, loud=False)
    made = trainer(tmp_path, student, teach=teach)
    assert made.models.classes == max(tokenizer().get_vocab().values()) + 1 < 360
    for divergence in (abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL(), abkd.JensenShannon()):
        made.task.objective = Objective(divergence=divergence)
        batch = made.data_collator([made.train_dataset[i] for i in range(4)])["batch"]
        out = losses(made.task, batch)
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
        with pytest.raises(VocabularyError, match=f"the {who}'s head has 300 rows and the tokenizer has"):
            trainer(tmp_path, llama(0, classes=student), teach=llama(1, classes=teach))
    with pytest.raises(VocabularyError, match="head has 300 rows and the tokenizer has"):
        trainer(tmp_path, llama(0, classes=300), teach=llama(1, classes=300))


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
    assert covered_mass(task_of(student, teach), batch) == pytest.approx(expected, rel=1e-5)
