"""Base-to-new with the trainer: trained without labels, evaluated on both halves, resumed bit for bit."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from abkd import DistillConfig, DistillTrainer
from abkd.data.images import base_and_new, load_images
from abkd.demo.clip import CAPTION, Small
from abkd.errors import ConfigError
from abkd.evaluation import evaluate
from abkd.metrics import TOP_K
from abkd.models.prompted import load_student
from abkd.recipe import Recipe
from abkd.registry import held_out_metrics
from abkd.run import distill
from abkd.tasks import Given
from clip_run_parts import clip_trainer, small_clips
from training_parts import gap, weights

pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install 'abkd[demo]'")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_clips(tmp_path_factory.mktemp("clips"))


def test_it_learns_without_labels(tmp_path, small, caplog):
    run = clip_trainer(tmp_path, small, max_steps=20)
    frozen = weights(run.model.vision_model)
    before = run.evaluate()
    with caplog.at_level(logging.INFO, logger="abkd"):
        run.train()
    after = run.evaluate()
    assert "results are transductive" in caplog.text
    assert after["eval_forward_kl"] < before["eval_forward_kl"]
    assert gap(frozen, run.model.vision_model) == 0.0
    assert not run.train_dataset.labelled
    assert run.collator([run.train_dataset[0]])["batch"].targets is None


def test_accuracies_are_within_each_half(tmp_path, small):
    run = clip_trainer(tmp_path, small)
    found = run.evaluate()
    images = load_images(small.held_out_file)
    base, new = base_and_new(images.class_names)
    assert base == (0, 1, 2, 3, 4)
    teacher = run.models.teacher
    right = {"base": [], "new": []}
    for i, label in enumerate(images.labels):
        batch = run.collator([run.eval_dataset[i]])["batch"]
        logits = teacher(batch.teacher).values[0]
        half = "base" if int(label) in base else "new"
        others = torch.tensor(new if half == "base" else base)
        right[half].append(int(logits.index_fill(0, others, -torch.inf).argmax()) == int(label))
    of_base, of_new = (sum(right[half]) / len(right[half]) for half in ("base", "new"))
    assert found["eval_teacher_base_accuracy"] == pytest.approx(of_base)
    assert found["eval_teacher_new_accuracy"] == pytest.approx(of_new)
    assert found["eval_teacher_harmonic_mean"] == pytest.approx(2 * of_base * of_new / (of_base + of_new))
    assert {"eval_base_accuracy", "eval_new_accuracy", "eval_harmonic_mean"} <= found.keys()


def test_an_evaluation_without_a_trainer_gives_the_same_to_the_last_bit(tmp_path, small):
    run = clip_trainer(tmp_path, small)
    found = run.evaluate()
    alone = evaluate(run.task)
    assert alone == {name: found[f"eval_{name}"] for name in alone}
    own = {name for name in alone if not name.startswith("teacher_")}
    assert own == {name for name in held_out_metrics(run.kind.name) if not name.endswith(TOP_K)}
    assert "teacher_harmonic_mean" in alone
    torch.manual_seed(run.args.seed)  # the student's prompts begin at random
    given = Given(str(small.student), str(small.teacher), held_out=str(small.held_out_file))
    assert evaluate(run.kind.open(given, run.distill_args)) == alone


def test_from_a_recipe_to_a_student_that_loads(tmp_path, small):
    recipe = Recipe.from_dict(
        {
            "task": "zero-shot-image-classification",
            "model_name_or_path": str(small.student),
            "teacher_model_name_or_path": str(small.teacher),
            "train_file": str(small.train_file),
            "eval_file": str(small.held_out_file),
            "output_dir": str(tmp_path / "run"),
            "prompt_template": CAPTION,
            "visual_prompt_depth": 1,
            "unlabelled_classes": "base",
            "max_steps": 2,
            "use_cpu": True,
        }
    )
    trainer = distill(recipe)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["base_classes"] == [0, 1, 2, 3, 4]
    assert record["unlabelled_classes"] == "base"
    assert record["train_rows"] == sum(label < 5 for label in load_images(small.train_file).labels)
    again = load_student(tmp_path / "run")
    assert gap(again.model, trainer.model) == 0.0
    assert again.preparation == trainer.models.student.classifier.preparation


def test_what_cannot_be_meant_is_refused(tmp_path, small):
    with pytest.raises(ConfigError, match="uses no labels: set ce_weight"):
        clip_trainer(tmp_path, small, ce_weight=0.1)
    with pytest.raises(ConfigError, match="one \\{\\} for the class name"):
        clip_trainer(tmp_path, small, prompt_template="a photo")


def test_images_of_base_classes_only_need_to_be_known_as_such(tmp_path, small):
    import numpy as np

    images = load_images(small.train_file)
    arrays = {"images": np.stack([images.image(i) for i in range(8)]), "classes": list(images.class_names)}
    with pytest.raises(ConfigError, match="needs labels to leave out"):
        DistillTrainer(
            str(small.student),
            str(small.teacher),
            DistillConfig(
                output_dir=str(tmp_path),
                task="zero-shot-image-classification",
                prompt_template=CAPTION,
                visual_prompt_depth=1,
                unlabelled_classes="base",
                use_cpu=True,
            ),
            train_dataset=arrays,
        )
