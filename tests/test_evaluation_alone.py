"""An evaluation without a trainer gives the numbers of the trainer's, to the last bit."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from abkd import DistillConfig
from abkd.errors import DataError
from abkd.evaluation import answer_metrics, evaluate, rouge_l
from abkd.generation import generate_answers
from abkd.tasks import Given, task_of
from image_parts import cifar, image_teacher, image_trainer, pictures, unlabelled
from training_parts import SHORT, config, llama, rows, teacher, tokenizer, trainer


def of_trainer(made: Any, **options: Any) -> dict[str, float]:
    found = made.evaluate(**options)
    names = [name for name in found if not name.endswith(("_runtime", "_per_second")) and name != "epoch"]
    return {name.removeprefix("eval_"): found[name] for name in names}


@pytest.mark.parametrize(
    "options",
    [{"ce_weight": 0.5}, {"bf16": True}, {"eval_samples": 3, **SHORT}],
    ids=["plain", "mixed precision", "of generated text"],
)
def test_of_text(tmp_path, options):
    options = {"per_device_eval_batch_size": 3, **options}
    expected = of_trainer(trainer(tmp_path, llama(0), eval_dataset=rows(7), **options))
    given = Given(llama(0), teacher(), held_out=rows(7), tokenizer=tokenizer())
    opened = task_of("text-generation").open(given, config(tmp_path, **options))
    assert evaluate(opened, progress=0.0) == expected


def test_of_a_trained_student_and_of_other_rows(tmp_path):
    made = trainer(tmp_path, llama(0), eval_dataset=rows(5), kd_weight="anneal(1.0, 0.5)", max_steps=2)
    made.train()
    before = torch.get_rng_state()
    alone = evaluate(made.task)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.model.training
    assert alone == of_trainer(made)
    assert evaluate(made.task, progress=0.0)["loss"] != alone["loss"]
    others = {name.removeprefix("test_"): x for name, x in made.evaluate(rows(3), metric_key_prefix="test").items()}
    assert evaluate(made.task, rows(3)) == others


def test_each_run_has_the_mixed_precision_of_its_own_settings(tmp_path, monkeypatch):
    """transformers 4 leaves that of the last settings in the environment; accelerate launch sets it there."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for bf16 in (True, False):
        assert trainer(tmp_path, llama(0), bf16=bf16).accelerator.mixed_precision == ("bf16" if bf16 else "no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched = trainer(tmp_path, llama(0), eval_dataset=rows(4))
    assert launched.accelerator.mixed_precision == "bf16"
    assert evaluate(launched.task, progress=0.0) == of_trainer(launched)


def test_of_a_student_without_a_teacher(tmp_path):
    options = {"ce_weight": 1.0, "kd_weight": 0.0}
    with_teacher = of_trainer(trainer(tmp_path, llama(0), eval_dataset=rows(4), **options))
    given = Given(llama(0), held_out=rows(4), tokenizer=tokenizer())
    opened = task_of("text-generation").open(given, config(tmp_path, **options))
    assert evaluate(opened) == {name: with_teacher[name] for name in ("loss", "perplexity")}


@pytest.mark.parametrize("data", [pictures, unlabelled])
def test_of_images(tmp_path, data):
    ce_weight = 0.5 if data is pictures else 0.0
    options = {"per_device_eval_batch_size": 3, "use_cpu": True, "ce_weight": ce_weight}
    expected = of_trainer(image_trainer(tmp_path, cifar(0), data=data(6), eval_dataset=data(7), **options))
    args = DistillConfig(output_dir=str(tmp_path), task="image-classification", **options)
    opened = task_of(args.task).open(Given(cifar(0), image_teacher(), held_out=data(7)), args)
    assert evaluate(opened) == expected


def test_without_rows_there_is_nothing_to_evaluate(tmp_path):
    opened = task_of("text-generation").open(Given(llama(0), teacher(), tokenizer=tokenizer()), config(tmp_path))
    with pytest.raises(DataError, match="expected held-out rows to evaluate on, got none: pass data"):
        evaluate(opened)


def test_of_answers():
    prompts = [tokenizer()(row["prompt"])["input_ids"] for row in rows(3)]
    references = [row["completion"] for row in rows(3)]
    answers, found = answer_metrics(llama(0), tokenizer(), prompts, references, max_new_tokens=4, seeds=(1, 2))
    assert answers == generate_answers(llama(0), tokenizer(), prompts, max_new_tokens=4)
    assert found["rouge_l_greedy"] == rouge_l(answers, references)
    assert found["tokens_per_second"] > 0
    sampled = [
        rouge_l(
            generate_answers(llama(0), tokenizer(), prompts, max_new_tokens=4, do_sample=True, seed=seed), references
        )
        for seed in (1, 2)
    ]
    assert found["rouge_l_sampled"] == statistics.mean(sampled)
    assert found["rouge_l_sampled_std"] == statistics.stdev(sampled)
    assert "rouge_l_sampled" not in answer_metrics(llama(0), tokenizer(), prompts, references, max_new_tokens=1)[1]
