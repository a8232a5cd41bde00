"""``DistillConfig``: training arguments with an objective, validation, and serialisation."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest
from transformers import TrainingArguments

from abkd import (
    AlphaBeta,
    DistillConfig,
    ForwardKL,
    ReverseKL,
    TeacherConfidence,
    WeightedSum,
    anneal,
    registry,
    stages,
)
from abkd.errors import ConfigError
from abkd.setting_rules import fields_of_others
from training_parts import SINCE_5


def config(**options: Any) -> DistillConfig:
    return DistillConfig(output_dir="run", use_cpu=True, **options)


def test_defaults():
    made = config()
    assert made.divergence == AlphaBeta(0.2, 0.7)
    assert (made.ce_weight, made.kd_weight, made.kd_temperature, made.lm_coef) == (0.0, 1.0, 1.0, 0.0)
    assert made.report_to in ([], "none", ["none"])
    assert (made.learning_rate, made.num_train_epochs) == (1e-4, 3)
    assert not made.remove_unused_columns
    assert not made.logging_nan_inf_filter
    assert made.get_warmup_steps(1000) == 30
    for steps in (0.0, 7.0):  # as recipes give them
        assert DistillConfig(output_dir="run", warmup_steps=steps).get_warmup_steps(1000) == steps


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ForwardKL()", ForwardKL()),
        ("AlphaBeta(0.5, beta=-0.25)", AlphaBeta(0.5, -0.25)),
        ("stages((0.5, ForwardKL()), (0.5, AlphaBeta()))", stages((0.5, ForwardKL()), (0.5, AlphaBeta()))),
        (
            "anneal(ForwardKL(), WeightedSum((1.0, ReverseKL())), shape='cosine')",
            anneal(ForwardKL(), WeightedSum((1.0, ReverseKL())), shape="cosine"),
        ),
    ],
)
def test_a_component_may_be_its_notation(text, value):
    assert config(divergence=text).divergence == value


def test_everything_can_be_written_as_json_and_read_again():
    made = config(
        divergence=anneal(ForwardKL(), AlphaBeta(0.2, 0.7)),
        row_weight=TeacherConfidence(2.0),
        ce_weight=anneal(1.0, 0.0),
        teacher_model_init_kwargs={"dtype": "bfloat16"},
    )
    values = json.loads(made.to_json_string())
    assert values["divergence"] == repr(made.divergence)
    assert values["row_weight"] == "TeacherConfidence(power=2.0)"
    again = config(**{name: values[name] for name in ("divergence", "row_weight", "ce_weight", "kd_weight")})
    assert again.objective() == made.objective()
    assert json.dumps(made.to_sanitized_dict(), default=str)  # written by trackers
    assert pickle.loads(pickle.dumps(made)).divergence == made.divergence  # transformers saves it with the weights
    assert str(made)


def test_kd_ratio_is_the_short_form():
    made = config(kd_ratio=0.75)
    assert (made.ce_weight, made.kd_weight) == (0.25, 0.75)
    assert (config(kd_ratio=0.0).ce_weight, config(kd_ratio=1).kd_weight) == (1.0, 1.0)
    assert dataclasses.replace(made, seed=3).kd_weight == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kd_ratio": 1.5}, "kd_ratio must be between 0 and 1 .*, got 1.5"),
        ({"kd_ratio": float("nan")}, "kd_ratio must be between 0 and 1"),
        ({"kd_ratio": 0.5, "ce_weight": 1.0}, "keep either kd_ratio or ce_weight"),
        ({"divergence": "AlphaBeta(0.2, inf)"}, "finite"),
        ({"divergence": "AlphaBata()"}, "did you mean AlphaBeta"),
        ({"divergence": 3.0}, r"divergence must be a divergence, such as AlphaBeta\(0.2, 0.7\)"),
        ({"divergence": "TeacherConfidence()"}, "divergence must be a divergence"),
        ({"divergence": anneal(0.0, 1.0)}, "divergence must be a divergence"),
        ({"kd_temperature": 0.0}, "kd_temperature must be >= 0.0001"),
        ({"kd_temperature": float("inf")}, "kd_temperature must be >= 0.0001 and <= 1000000, got inf"),
        ({"kd_temperature": 1e-30}, "kd_temperature must be >= 0.0001 and <= 1000000"),
        ({"kd_temperature": 1e30}, "kd_temperature must be >= 0.0001 and <= 1000000"),
        ({"ce_weight": 1e300}, "ce_weight must be >= 0 and <= 1e"),
        ({"kd_weight": anneal(1.0, 1e38)}, "kd_weight must be >= 0 and <= 1e"),
        ({"ce_weight": -1.0}, "ce_weight must be >= 0"),
        ({"kd_weight": anneal(1.0, -1.0)}, "kd_weight must be >= 0"),
        ({"kd_weight": 0.0}, "nothing would be learned"),
        ({"lm_coef": float("nan")}, "lm_coef must be >= 0"),
        ({"row_weight": "ForwardKL()"}, "row_weight must be row weights"),
        ({"max_length": 1}, "max_length must be >= 2"),
        ({"memory_budget_mb": 0}, "memory_budget_mb must be > 0"),
        ({"teacher_model_init_kwargs": "bfloat16"}, "teacher_model_init_kwargs must be a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


_CLIP = "zero-shot-image-classification"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "text"}, "task must be one of text-generation, image-classification, zero-shot-.*, got 'text'"),
        ({"task": _CLIP, "unlabelled_classes": "Base"}, "unlabelled_classes must be one of all, base, got 'Base'"),
        ({"on_bad_row": "skip"}, "on_bad_row must be one of error, drop, got 'skip'"),
        ({"save_dtype": "half"}, "save_dtype must be one of float32, bfloat16, float16 or None, got 'half'"),
        ({"packing": "false"}, "packing must be true or false, got 'false'"),
        ({"bf16": "no"}, "bf16 must be true or false, got 'no'"),
        ({"apply_chat_template": 2}, "apply_chat_template must be true or false or None, got 2"),
        ({"num_generations": True}, "num_generations must be an integer, got True"),
        ({"max_length": None}, "max_length must be an integer, got None"),
        ({"lr_scheduler_type": 1}, "lr_scheduler_type must be a string, got 1"),
        ({"teacher_model_server_url": 8000}, "teacher_model_server_url must be a string or None, got 8000"),
        ({"generation_kwargs": 3}, "generation_kwargs must be a mapping or None, got 3"),
        ({"lr_milestones": 150}, "lr_milestones must be a list or None, got 150"),
        ({"task": "image-classification", "augmentation": False}, "augmentation must be a list such as"),
        ({"task": _CLIP, "prompt_template": None}, "prompt_template must be a string, got None"),
        ({"task": _CLIP, "visual_prompt_depth": -1}, "visual_prompt_depth must be >= 0, got -1"),
    ],
    ids=str,
)
def test_python_too_wants_the_kind_of_value_that_is_meant(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_a_switch_may_be_numpy_s_or_a_number():
    made = config(packing=np.bool_(True), decay_all_parameters=1, bf16=0)
    assert (made.packing, made.decay_all_parameters, made.bf16) == (True, True, False)
    assert type(made.packing) is type(made.decay_all_parameters) is bool


_OTHER_THAN_THE_DEFAULT = {
    **dict.fromkeys(("packing", "group_by_length", "seq_kd", "apply_chat_template", "merge_adapter"), True),
    "max_length": 64,
    "max_completion_length": 8,
    "num_generations": 2,
    "eval_samples": 1,
    "lmbda": 0.5,
    "teacher_model_server_url": "http://here",
    "lm_coef": 1.0,
    "source": "StudentSamples()",
    "generation_kwargs": {"do_sample": True},
    "save_dtype": "float32",
    "text_column_names": ["review"],
    "label_column_name": "stars",
    "image_size": 8,
    "allow_code": ["mine"],
    "augmentation": "[HorizontalFlip()]",
    "prompt_template": "a {}",
    "visual_prompt_length": 1,
    "visual_prompt_depth": 1,
    "unlabelled_classes": "base",
}


@pytest.mark.parametrize("task", registry.tasks())
def test_a_setting_of_another_task_is_refused_as_in_a_recipe(task):
    own, others = {field.name for field in dataclasses.fields(DistillConfig)}, fields_of_others(task)
    assert others & own
    for name in sorted(others & own):
        with pytest.raises(ConfigError, match=f"does not apply to the task {task}; remove it"):
            config(task=task, **{name: _OTHER_THAN_THE_DEFAULT[name]})


def test_every_own_field_explains_itself():
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field for field in dataclasses.fields(DistillConfig) if field.name not in inherited]
    assert len(own) >= 14
    assert not [field.name for field in own if not field.metadata.get("help")]


def test_torch_dtype_is_dtype() -> None:
    made = DistillConfig(output_dir="run", teacher_model_init_kwargs='{"torch_dtype": "float16"}')
    assert made.teacher_model_init_kwargs == {"dtype": "float16"}
    with pytest.raises(
        ConfigError, match="model_init_kwargs: got both dtype and torch_dtype, which are the same: keep dtype"
    ):
        DistillConfig(output_dir="run", model_init_kwargs={"torch_dtype": "float16", "dtype": "float32"})


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", pytest.param("greedy", marks=SINCE_5)])
def test_a_schedule_that_follows_a_metric_knows_which_way_is_better(schedule: str) -> None:
    options = {"output_dir": "run", "lr_scheduler_type": schedule, "eval_strategy": "epoch", "warmup_steps": 0}
    modes = [
        (DistillConfig(metric_for_best_model=name, **options).lr_scheduler_kwargs or {}).get("mode")
        for name in ("top1_agreement", "perplexity")
    ]
    assert modes == ["max", None]
