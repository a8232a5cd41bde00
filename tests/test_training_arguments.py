"""Every field of ``transformers.TrainingArguments`` works, changes nothing, or is refused; nothing is ignored."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
from typing import Any

import numpy as np
import pytest
from transformers import TrainingArguments
from transformers.integrations import integration_utils
from transformers.training_args import OptimizerNames

from abkd import DistillConfig
from abkd.errors import ConfigError
from abkd.recipe import Recipe
from abkd.registry import held_out_metrics
from abkd.training_arguments import BELONGS, HARMLESS, REFUSED, TRACKERS, WORKS, _trial, problems
from abkd.training_arguments import _rules as rules
from abkd.training_arguments._packages import OPTIMIZERS, Package, needed_by_models, needed_by_settings
from training_parts import SINCE_5

BASE = {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher", "train_file": "data.jsonl"}
FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
OF_TEXT = held_out_metrics("text-generation")
STAGES = "stages((0.5, ForwardKL()), (0.5, AlphaBeta()))"


def config(**options: Any) -> DistillConfig:
    return DistillConfig(output_dir="run", **{"use_cpu": True, **options})


def disk_errors(**options: Any) -> tuple[str, str]:
    """The messages in Python and on the command line, which must agree."""
    with pytest.raises(ConfigError) as of_python:
        config(**options)
    with pytest.raises(ConfigError) as of_command:
        Recipe.from_dict({**BASE, **options})
    return str(of_python.value), str(of_command.value)


# ---- the table


def test_every_field_of_this_version_has_its_place():
    known = [WORKS, HARMLESS.keys(), REFUSED.keys(), BELONGS.keys()]
    assert FIELDS.keys() - set().union(*known) == set(), "new in this version: does it work, is it harmless or refused?"
    assert sum(map(len, known)) == len(set().union(*known)), "a field has one place"


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(FIELDS)))
def test_what_would_have_no_effect_is_refused_by_both(name):
    value = another(name)
    if name == "parallelism_config":  # no recipe can write it
        assert problems({name: object()})[0].startswith(f"{name} has no effect here")
        return
    for said in disk_errors(**{name: value}):
        assert f"{name} has no effect here: {REFUSED[name]}" in said


def another(name: str) -> Any:
    """A value of the field's type that is not its default."""
    unset = rules.defaults()[name]
    special = {
        "include_for_metrics": ["loss"], "label_names": ["labels"], "liger_kernel_config": {"rope": True},
        "torch_compile_backend": "inductor", "torch_compile_mode": "default", "include_num_input_tokens_seen": "all",
        "train_sampling_strategy": "group_by_length", "past_index": 0, "parallelism_config": object(),
        "ddp_static_graph": True,
        **dict.fromkeys(("per_gpu_train_batch_size", "per_gpu_eval_batch_size", "tpu_num_cores"), 8),
    }  # fmt: skip
    if name in special:
        return special[name]
    return (not unset) if isinstance(unset, bool) else "x" if isinstance(unset, str) or unset is None else unset + 1


def test_the_defaults_are_refused_by_nothing():
    assert problems({name: rules.defaults()[name] for name in FIELDS}) == []
    made = config(load_best_model_at_end=True)
    assert dataclasses.replace(made, seed=3).seed == 3


def test_a_field_of_a_newer_version_is_refused_unless_it_is_at_its_default(monkeypatch):
    monkeypatch.setattr(rules, "defaults", lambda: {"sparkle": False, "seed": 42})
    assert problems({"sparkle": False, "seed": 1}) == []
    assert problems({"sparkle": True}) == [
        "sparkle is new in this version of transformers and unknown to abkd, so it might have no effect: remove it"
    ]


# ---- values


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"save_steps": 0}, "save_steps must be an integer >= 1 (steps), or a fraction of the run"),
        ({"save_steps": -5}, "save_steps must be an integer >= 1 (steps)"),
        ({"eval_steps": 2.5}, "eval_steps must be an integer >= 1 (steps)"),
        ({"logging_steps": 0}, "logging_steps must be an integer >= 1 (steps)"),
        ({"save_steps": 50, "save_strategy": "epoch"}, "save_steps needs save_strategy: steps"),
        ({"eval_steps": 50, "eval_strategy": "no"}, "eval_steps needs eval_strategy: steps"),
        ({"logging_steps": 5, "logging_strategy": "epoch"}, "logging_steps needs logging_strategy: steps"),
        ({"max_steps": 0}, "max_steps must be 1 or more, or -1"),
        ({"max_steps": -3}, "max_steps must be 1 or more, or -1"),
        ({"num_train_epochs": -1.0}, "num_train_epochs must be 0 (evaluate only) or more"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be from 0 to below 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be 0 (no clipping) or more"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"seed": -1}, "seed must be from 0 to 4294967295"),
        ({"data_seed": 2**32}, "data_seed must be from 0 to 4294967295"),
        ({"save_total_limit": -1}, "save_total_limit must be 1 or more, or 0 (keep all)"),
        ({"log_level": "loud"}, "log_level must be one of detail, debug"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 cannot be used together"),
        ({"hub_model_id": "me/it"}, "hub_model_id needs push_to_hub: true, which is not set"),
        ({"project": "mine"}, "project needs report_to: trackio, which is not set"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor needs dataloader_num_workers above 0"),
        (
            {"dataloader_prefetch_factor": 2},
            "dataloader_prefetch_factor needs dataloader_num",
        ),
        ({"optim_args": "momentum=0.9"}, "optim_args has no effect with optim: adamw_torch_fused; it applies to sgd"),
        ({"optim": "sgd", "optim_args": "beta=0.9"}, "optim_args of sgd are momentum, dampening"),
        ({"optim": "sgd", "optim_args": "momentum=x1"}, "optim_args: momentum must be a number"),
        ({"optim": "sgd", "optim_args": "momentum=true"}, "optim_args: momentum must be a number, got 'true'"),
        ({"optim": "sgd", "optim_args": "momentum=nan"}, "optim_args: momentum must be a number, got 'nan'"),
        ({"optim": "sgd", "optim_args": "nesterov=1"}, "optim_args: nesterov must be true or false"),
        ({"optim": "sgd", "optim_args": "weight_decay=1"}, "optim_args: the setting weight_decay would override it"),
        ({"optim": "adafactor", "adam_beta2": 0.9}, "adam_beta2 has no effect with optim: adafactor: remove it"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1 has no effect with optim: sgd: set optim_args (momentum"),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 10},
            "warmup_steps has no effect with lr_sched",
        ),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs have no effect with"),
        (
            {"eval_delay": 4, "eval_strategy": "epoch"},
            "eval_delay is 4 epochs, but the run ends after 3: nothing would",
        ),
        (
            {"eval_delay": 4, "eval_steps": 1, "max_steps": 3},
            "eval_delay is 4 steps, but the run ends after 3: nothing",
        ),
        ({"lr_decay": 0.5}, "lr_decay applies only to lr_milestones, which are not set"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"foo": 1}}},
            "sync_each_batch, got 'foo'",
        ),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "dispatch_batches: True has no effect",
        ),
        ({"lr_milestones": [1.0], "lr_scheduler_type": "linear"}, "lr_milestones and lr_scheduler_type both set"),
        (
            {"metric_for_best_model": "ppl"},
            f"must be one of {', '.join(OF_TEXT)}, got 'ppl'",
        ),
        ({"metric_for_best_model": "r_llh"}, "r_llh needs eval_samples above 0"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "load_best_model_at_end needs checkpoints"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch", "save_steps": 5}, "evaluates whenever it saves"),
        ({"load_best_model_at_end": True, "eval_steps": 3, "save_steps": 5}, "save_steps must be a multiple"),
        ({"save_strategy": "best", "eval_strategy": "no"}, "save_strategy: best saves after an evaluation"),
        pytest.param(
            {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spwan"},
            "dataloader_multiprocessing_context must be one of fork, forkserver, spawn, got 'spwan'",
            marks=SINCE_5,
        ),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
            "accelerator_config: set gradient_accumulation_steps, not num_steps",
        ),
        ({"neftune_noise_alpha": 1e300}, "neftune_noise_alpha must be from 0 to 1000000"),
        ({"ddp_timeout": 10**30}, "ddp_timeout must be"),
        (
            {"task": "image-classification", "neftune_noise_alpha": 5.0},
            "embeddings, which image-classification does not",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_by_both(options, says):
    if options.get("task"):
        assert says in problems(options)[0]
        return
    for said in disk_errors(**options):
        assert says in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "do not fit lr_scheduler_type: cosine_with_min_lr"),
        ({"lr_scheduler_kwargs": {"num_cycles": "x"}}, "do not fit lr_scheduler_type: cosine: could not convert"),
        pytest.param(
            {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}},
            "do not fit lr_scheduler_type: inverse_sqrt: division by zero",
            marks=SINCE_5,
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "do not fit lr_scheduler_type: warmup_stable_decay"),
        ({"lr_scheduler_kwargs": {"colour": 1}}, "do not fit lr_scheduler_type: cosine"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "optim_args do not fit optim: sgd"),
        ({"optim_target_modules": ["attn"]}, "optim_target_modules applies to optim"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau requires an eval strategy"),
        ({"accelerator_config": {"colour": 1}}, "invalid training arguments"),
        ({"debug": "everything"}, "invalid training arguments"),
        ({"divergence": STAGES, "load_best_model_at_end": True}, "the loss changes over this run"),
        ({"divergence": STAGES, "metric_for_best_model": "loss"}, "the loss changes over this run"),
    ],
    ids=str,
)
def test_what_is_seen_when_the_arguments_are_made_is_one_sentence(options, says):
    with pytest.raises(ConfigError) as refused:
        config(**options)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3': write 1e-3 in Python"),
        ({"max_steps": 2.5}, "max_steps must be an integer, got 2.5"),
        ({"seed": math.inf}, "seed must be an integer, got inf"),
        ({"adam_beta1": [0.9]}, "adam_beta1 must be a number"),
        ({"kd_temperature": "2"}, "kd_temperature must be a number"),
        ({"image_size": 0, "task": "image-classification"}, "image_size must be >= 1, got 0"),
    ],
    ids=str,
)
def test_python_too_wants_numbers_where_numbers_are_meant(options, says):
    with pytest.raises(ConfigError) as refused:
        config(**options)
    assert says in str(refused.value)


def test_a_whole_number_may_be_a_float_or_numpy_s():
    made = config(max_steps=2.0, per_device_train_batch_size=np.int64(4), learning_rate=np.float32(0.5))
    assert (made.max_steps, made.per_device_train_batch_size, made.learning_rate) == (2, 4, 0.5)
    assert type(made.max_steps) is int


# ---- derived settings


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({}, ("epoch", None, "no", None)),
        ({"save_steps": 50}, ("steps", 50, "no", None)),
        ({"save_steps": 0.25}, ("steps", 0.25, "no", None)),
        ({"eval_steps": 50}, ("epoch", None, "steps", 50)),
        ({"save_strategy": "steps"}, ("steps", 500, "no", None)),
        ({"load_best_model_at_end": True}, ("epoch", None, "epoch", None)),
        ({"load_best_model_at_end": True, "save_steps": 50}, ("steps", 50, "steps", 50)),
        ({"load_best_model_at_end": True, "eval_steps": 50}, ("steps", 50, "steps", 50)),
        ({"load_best_model_at_end": True, "eval_steps": 5, "save_steps": 10}, ("steps", 10, "steps", 5)),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, ("epoch", None, "epoch", None)),
        ({"save_strategy": "best"}, ("best", None, "epoch", None)),
    ],
    ids=str,
)
def test_a_number_of_steps_means_its_strategy(given, means):
    made = config(**given)
    again = dataclasses.replace(made, seed=1)
    for one in (made, again):
        assert (one.save_strategy, one.save_steps, one.eval_strategy, one.eval_steps) == means
    recipe = Recipe.from_dict({**BASE, **given})
    assert Recipe.from_dict(recipe.resolved()).resolved() == recipe.resolved()
    assert Recipe.from_dict(recipe.resolved()).distill_config().save_strategy == made.save_strategy


@pytest.mark.parametrize(
    ("name", "higher"),
    [("loss", False), ("eval_perplexity", False), ("forward_kl", False), ("reverse_kl", False), ("r_cvg", False),
     ("top1_agreement", True)],
)  # fmt: skip
def test_it_is_known_which_way_a_metric_is_better(name, higher):
    assert config(metric_for_best_model=name, eval_samples=1).greater_is_better is higher
    assert (
        config(metric_for_best_model=name, eval_samples=1, greater_is_better=not higher).greater_is_better is not higher
    )


def test_accuracies_are_better_when_high():
    base_to_new = "zero-shot-image-classification"
    assert config(task="image-classification", metric_for_best_model="accuracy").greater_is_better
    for name in ("new_accuracy", "harmonic_mean"):
        assert config(task=base_to_new, metric_for_best_model=name).greater_is_better
    assert not config(task="image-classification", metric_for_best_model="cross_entropy").greater_is_better


def test_a_loss_that_changes_tells_no_best_checkpoint():
    assert config(divergence=STAGES).metric_for_best_model is None
    assert (
        config(divergence=STAGES, load_best_model_at_end=True, metric_for_best_model="perplexity").greater_is_better
        is False
    )


def test_without_a_gpu_bf16_runs_on_the_cpu_and_fp16_is_left_out(caplog):
    made = DistillConfig(output_dir="run", bf16=True)
    assert made.use_cpu
    made = DistillConfig(output_dir="run", fp16=True)
    assert not made.fp16
    assert "fp16 needs a GPU, so this run computes in float32" in caplog.text


@pytest.mark.parametrize(("slowdown", "said"), [(5.25, True), (1.2, False), (0.4, False)])
def test_bf16_that_this_processor_computes_slowly_is_said(slowdown, said, caplog, monkeypatch):
    monkeypatch.setattr(_trial, "bf16_slowdown", lambda: slowdown)
    assert DistillConfig(output_dir="run", bf16=True).bf16
    assert (f"takes {slowdown:.1f} times as long" in caplog.text) is said


# ---- packages


def test_every_tracker_and_every_optimizer_of_this_version_is_known():
    assert set(integration_utils.INTEGRATION_TO_CALLBACK) <= TRACKERS.keys()
    torchs = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "lomo", "adalomo"}
    unknown = {each.value for each in OptimizerNames} - torchs
    assert {name for name in unknown if not any(re.fullmatch(pattern, name) for pattern, _ in OPTIMIZERS)} == set()


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(Package, "installed", property(lambda self: False))


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"report_to": "wandb"}, "report_to: wandb needs the package wandb: pip install wandb"),
        ({"report_to": ["comet_ml"]}, "report_to: comet_ml needs the package comet_ml: pip install comet-ml"),
        ({"report_to": "tensorbord"}, "report_to must be none, all or some of azure_ml, clearml"),
        ({"optim": "paged_adamw_8bit"}, "needs the package bitsandbytes: pip install 'abkd[quantized]'"),
        ({"optim": "galore_adamw"}, "needs the package galore_torch: pip install galore-torch"),
        ({"optim": "stable_adamw"}, "needs the package optimi: pip install torch-optimi"),
        ({"deepspeed": "ds.json"}, "deepspeed needs the package deepspeed: pip install deepspeed"),
        (
            {"model_init_kwargs": {"load_in_4bit": True}},
            "load_in_4bit needs the package bitsandbytes",
        ),
        (
            {"teacher_model_init_kwargs": {"quantization_config": {"quant_method": "gptq"}}},
            "teacher_model_init_kwargs: quantization_config (gptq) needs the package gptqmodel",
        ),
        (
            {"teacher_model_init_kwargs": {"attn_implementation": "flash_attention_2"}},
            "attn_implementation flash_attention_2 needs the package flash_attn: pip install flash-attn",
        ),
    ],
    ids=str,
)
def test_a_missing_package_is_named_with_its_pip_command(options, says):
    with pytest.raises(ConfigError) as refused:
        config(**options)
    assert says in str(refused.value)


@pytest.mark.usefixtures("nothing_installed")
def test_models_that_need_a_package_are_seen_before_they_are_loaded(tmp_path):
    (tmp_path / "quantised").mkdir()
    (tmp_path / "quantised" / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    names = ["timm:resnet18", "torchvision:resnet18", str(tmp_path / "quantised"), str(tmp_path / "adapter"), "a/b"]
    said = needed_by_models([("model_name_or_path", name) for name in names])
    assert [sentence.rpartition("package ")[2] for sentence in said] == [
        "timm: pip install 'abkd[vision]'", "torchvision: pip install 'abkd[vision]'",
        "bitsandbytes: pip install 'abkd[quantized]'", "peft: pip install 'abkd[lora]'",
    ]  # fmt: skip


def test_what_is_installed_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setattr(sys.modules["wandb"], "__spec__", types.SimpleNamespace(), raising=False)
    assert needed_by_settings({"report_to": "wandb"}) == []
    assert needed_by_settings({"report_to": ["none"], "optim": "adamw_torch"}) == []
