"""Settings of transformers that are documented to work have an effect, and those without an effect are refused."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from abkd import DistillTrainer
from abkd.errors import ConfigError, OutputDirError
from abkd.trainer import _trainer
from abkd.trainer._checkpoints import checkpoints
from abkd.trainer._final import _last
from training_parts import (
    CHECKPOINTING,
    SINCE_5,
    config,
    gap,
    gpt2,
    llama,
    rows,
    save_models,
    tokenizer,
    trainer,
    weights,
)

SHORT = {"max_steps": 2, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0}


def trained(path: Any, **options: Any) -> dict[str, torch.Tensor]:
    made = trainer(path, **{**SHORT, **options})
    made.train()
    return weights(made.model)


def unsupporting(seed: int) -> Any:
    """Like some families: they cannot recompute activations."""
    model = gpt2(seed)
    model.supports_gradient_checkpointing = False
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "options",
    [
        {"neftune_noise_alpha": 50.0},
        {"bf16": True},
        {"optim": "adafactor"},
        {"optim": "adagrad", "optim_args": "eps=0.1"},
        {"optim": "rmsprop", "optim_args": "momentum=0.9"},
        {"adam_beta1": 0.1},
        {"adam_beta2": 0.5},
        {"adam_epsilon": 1.0},
        {"weight_decay": 0.5},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 3.0}},
        {"warmup_steps": 2},
    ],
    ids=str,
)
def test_it_changes_what_is_trained(options, plain, tmp_path):
    assert gap(trained(tmp_path, **options), plain) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"torch_empty_cache_steps": 1},
        {"debug": "underflow_overflow"},
        {"skip_memory_metrics": False},
        {"prediction_loss_only": True, "eval_accumulation_steps": 1, "eval_do_concat_batches": False},
        {"fp16": True},
    ],
    ids=str,
)
def test_it_leaves_the_training_as_it_is(options, plain, tmp_path):
    assert gap(trained(tmp_path, **options), plain) == 0


def measuring(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """The evaluations return these losses in order; the first is that of the untrained student."""
    left = iter(values)
    monkeypatch.setattr(
        _trainer, "evaluate_run", lambda *_: dict.fromkeys(("loss", "perplexity", "top1_agreement"), next(left))
    )


EACH = {"save_steps": 1, "eval_steps": 1, "eval_dataset": rows(2), "save_strategy": "steps"}


@pytest.mark.parametrize(
    ("options", "measured", "best"),
    [
        # the untrained student would be the best, but is not a checkpoint
        ({"metric_for_best_model": "perplexity"}, (0.1, 3.0, 1.0, 2.0, 4.0), 2),
        ({"metric_for_best_model": "top1_agreement"}, (9.0, 3.0, 1.0, 2.0, 4.0), 4),
        ({"metric_for_best_model": "perplexity", "greater_is_better": True}, (9.0, 3.0, 1.0, 2.0, 4.0), 4),
        ({"save_steps": 2}, (0.1, 5.0, 4.0, 1.0, 2.0), 4),  # after step 3 no checkpoint is saved that could be restored
        ({"save_steps": 2}, (0.1, 1.0, 4.0, 5.0, 6.0), 2),
    ],
    ids=str,
)
def test_the_best_of_the_checkpoints_is_loaded(options, measured, best, tmp_path, monkeypatch):
    measuring(monkeypatch, *measured)
    made = trainer(tmp_path, **{**EACH, "max_steps": 4, "load_best_model_at_end": True, **options})
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


@pytest.mark.parametrize(
    ("limit", "left"), [({}, [1, 4, 5]), ({"save_total_limit": 0}, [1, 2, 3, 4, 5]), ({"save_total_limit": 1}, [1, 5])]
)
def test_the_newest_checkpoints_are_kept_and_the_best(limit, left, tmp_path, monkeypatch):
    measuring(monkeypatch, 0.1, 1.0, 2.0, 3.0, 4.0, 5.0)
    trainer(tmp_path, **{**EACH, "max_steps": 5, **limit}).train()
    assert [int(path.name.rpartition("-")[2]) for path in checkpoints(tmp_path)] == left


def test_what_is_evaluated_and_logged_when(tmp_path, monkeypatch):
    measuring(monkeypatch, 1.0, 2.0, 3.0)
    steps = {"max_steps": 4, "logging_strategy": "steps", "logging_steps": 3, "logging_first_step": True}
    made = trainer(tmp_path, **steps, eval_dataset=rows(2), eval_strategy="steps", eval_steps=1, eval_delay=3)
    made.train()
    history = made.state.log_history
    assert [record["step"] for record in history if "loss" in record] == [1, 3]
    assert [record["step"] for record in history if "eval_loss" in record] == [0, 3, 4]  # 0: the untrained student


@SINCE_5
def test_the_loader_is_as_it_was_asked_for(tmp_path):
    loader = trainer(
        tmp_path,
        dataloader_num_workers=1,
        dataloader_multiprocessing_context="spawn",
        dataloader_prefetch_factor=3,
        dataloader_pin_memory=False,
    ).get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.pin_memory) == (1, 3, False)
    assert loader.multiprocessing_context.get_start_method() == "spawn"


def test_everything_is_deterministic_where_that_is_asked_for(tmp_path):
    before = dict(os.environ)
    try:
        trainer(tmp_path, max_steps=1, full_determinism=True).train()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.clear()
        os.environ.update(before)


def test_a_checkpoint_of_the_model_alone_is_nothing_to_resume_from(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "save_only_model": True}
    trainer(tmp_path, **options).train()
    with pytest.raises(OutputDirError, match="it was saved with save_only_model and has no optimizer state"):
        trainer(tmp_path, **{**options, "max_steps": 2}).train(resume_from_checkpoint=True)


def test_a_batch_that_does_not_fit_is_tried_at_half_the_size(tmp_path, monkeypatch):
    seen: list[int] = []
    original = DistillTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        seen.append(self._train_batch_size)
        if self._train_batch_size > 2 and self.state.global_step == 1:
            raise RuntimeError("CUDA out of memory.")
        return original(self, model, inputs, *more)

    monkeypatch.setattr(DistillTrainer, "training_step", step)
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "auto_find_batch_size": True}
    trainer(tmp_path, save_strategy="steps", save_steps=1, **options).train()
    assert seen[0] == 4
    assert seen[-2:] == [2, 2]
    of_first = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert of_first["train_batch_size"] == 2


def test_an_optimizer_that_trains_other_weights_gives_its_own_to_the_evaluation(tmp_path):
    made, asked = trainer(tmp_path, eval_dataset=rows(2)), []
    made.optimizer = SimpleNamespace(eval=lambda: asked.append("eval"))
    made.evaluate()
    assert asked == ["eval"]


@pytest.mark.parametrize(
    "name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func", "model_init", "data_collator"]
)
def test_an_argument_of_transformers_that_would_never_be_called_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} has no effect here"):
        DistillTrainer("no such model", "nor this", config(tmp_path), train_dataset=rows(2), **{name: print})


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"args": TrainingArguments("x")}, ConfigError, "must be a DistillConfig .*, got TrainingArguments"),
        ({"tokenizer": 1}, TypeError, "no argument 'tokenizer'; pass the tokenizer as processing_class"),
        ({"callbacks": EarlyStoppingCallback()}, ConfigError, "callbacks must be a list, got EarlyStopping"),
        ({"callbacks": ["wandb"]}, ConfigError, "TrainerCallbacks of transformers, got 'wandb'"),
        ({"callbacks": [EarlyStoppingCallback()]}, ConfigError, "needs evaluations, and there are none"),
        ({"callbacks": [EarlyStoppingCallback]}, ConfigError, "needs evaluations, and there are none"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_before_a_model_is_loaded(given, error, says, tmp_path):
    with pytest.raises(error, match=says):
        DistillTrainer("no such model", "nor this", **{"args": config(tmp_path), "train_dataset": rows(2), **given})


@pytest.mark.parametrize(
    "options", [{}, {"save_steps": 4, "save_strategy": "steps"}, {**EACH, "load_best_model_at_end": True}], ids=str
)
def test_a_run_ends_early_where_it_gets_no_better(options, tmp_path, monkeypatch):
    measuring(monkeypatch, 9.0, 3.0, 2.0, 2.5, 2.6, 1.0)  # the first is that of the untrained student
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    made = trainer(tmp_path, callbacks=[stop], **{"max_steps": 9, "eval_steps": 1, "eval_dataset": rows(2), **options})
    made.train()
    assert made.state.global_step == 4
    assert made.state.best_metric == 2.0


def test_early_stopping_counts_on_after_a_resume(tmp_path, monkeypatch):
    steps = []
    for path, stopped in ((tmp_path / "one", None), (tmp_path / "two", 3)):
        measuring(monkeypatch, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
        options = {**EACH, "max_steps": 9, "callbacks": [EarlyStoppingCallback(early_stopping_patience=4)]}
        if stopped:
            trainer(path, **{**options, "callbacks": [*options["callbacks"], StopAt(stopped)]}).train()
        made = trainer(path, **options)
        made.train(resume_from_checkpoint=bool(stopped))
        steps.append(made.state.global_step)
    assert steps == [5, 5]


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_where_the_best_is_loaded_it_is_what_rounding_is_compared_with(tmp_path, monkeypatch):
    measuring(monkeypatch, 9.0, 3.0, 1.0, 2.0)  # the untrained student, and steps 1 to 3
    made = trainer(tmp_path, **{**EACH, "max_steps": 3, "load_best_model_at_end": True})
    made.train()
    assert _last(made.run, dict)["eval_loss"] == 1.0
    made.args.load_best_model_at_end = False
    assert _last(made.run, dict)["eval_loss"] == 2.0


def test_a_used_folder_is_emptied_in_python_too(tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, max_steps=3, **options).train()
    trainer(tmp_path, max_steps=1, **options).train()
    assert "contains checkpoint-3 of an earlier run, from which --resume might continue" in caplog.text
    trainer(tmp_path, max_steps=1, overwrite_output_dir=True, **options).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputDirError, match=r"mine\.txt"):
        trainer(tmp_path, max_steps=1, overwrite_output_dir=True, **options).train()


def test_the_checkpoint_that_the_arguments_name_is_gone_on_from(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 0}
    trainer(tmp_path, max_steps=3, **options).train()
    made = trainer(tmp_path, max_steps=3, resume_from_checkpoint=str(tmp_path / "checkpoint-2"), **options)
    made.train()
    assert [each["step"] for each in made.state.log_history if "loss" in each] == [1, 2, 3]
    with pytest.raises(OutputDirError, match="cannot resume from nowhere: no such directory"):
        made.train("nowhere")


def test_options_of_a_student_by_name_are_used(tmp_path):
    save_models(tmp_path, student=llama(0))
    made = DistillTrainer(
        str(tmp_path / "student"),
        llama(1),
        config(tmp_path / "run", model_init_kwargs={"attn_implementation": "eager"}),
        train_dataset=rows(2),
    )
    assert made.model.config._attn_implementation == "eager"


def test_a_backend_for_several_processes_is_nothing_to_one(tmp_path):
    assert config(tmp_path, ddp_backend="gloo").ddp_backend is None
    with pytest.raises(ConfigError, match=r"ddp_backend must be one of nccl, gloo, .*, got 'glo'"):
        config(tmp_path, ddp_backend="glo")


@pytest.mark.parametrize(
    ("student", "options", "says"),
    [
        (
            llama,
            {f"{CHECKPOINTING}_kwargs": {"use_reentrnt": True}},
            "_kwargs has no option 'use_reentrnt'; its options are .*use_re",
        ),
        (unsupporting, {}, r"the student \(GPT2LMHeadModel\) does not support gradient checkpointing: remove"),
    ],
    ids=["kwargs", "model"],
)
def test_activations_that_cannot_be_computed_again_are_refused_before_the_run(student, options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        trainer(tmp_path, student(0), **{CHECKPOINTING: True}, **options)
    assert not list(tmp_path.iterdir())


def test_shards_want_several_processes(tmp_path):
    with pytest.raises(ConfigError, match="fsdp shards a model over several processes, got one"):
        DistillTrainer("no such model", "nor this", config(tmp_path, fsdp="full_shard"), train_dataset=rows(2))


def said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(words in message for message in caplog.messages)


def test_where_nothing_is_learned_it_is_said(tmp_path, caplog):
    trainer(tmp_path, max_steps=1, divergence="AlphaBeta(1e6, 1)").train()
    assert said(caplog, "the exponents of AlphaBeta(alpha=1000000.0, beta=1.0) are so large")
    assert said(caplog, "the gradient of step 1 is almost zero")


def test_where_no_weight_changes_it_is_said(tmp_path, caplog):
    trainer(tmp_path, max_steps=2, learning_rate=1e-30).train()
    assert said(caplog, "no weight has changed in 2 steps, so nothing is learned")


def test_settings_of_text_that_nobody_writes_are_said(tmp_path, caplog):
    options = {"max_steps": 1, "num_generations": 2, "max_completion_length": 5}
    trainer(tmp_path / "one", source="StudentSamples()", **options).train()
    assert not said(caplog, "no model generates text")
    trainer(tmp_path / "two", **options).train()
    assert said(caplog, "generates text in this run, so num_generations, max_completion_length will have no")


def test_of_an_ordinary_run_nothing_is_said(tmp_path, caplog):
    trainer(tmp_path, max_steps=1).train()
    assert not said(caplog, "no model generates text")
    assert not said(caplog, "almost zero")
    assert not said(caplog, "the exponents of")
    assert not said(caplog, "no weight has changed")


def test_training_needs_rows_and_a_search_is_another_commands(tmp_path):
    made = DistillTrainer(llama(0), llama(1), config(tmp_path), processing_class=tokenizer())
    with pytest.raises(ConfigError, match="there is nothing to train on"):
        made.train()
    with pytest.raises(ConfigError, match="abkd distill --grid and --seeds"):
        made.hyperparameter_search(n_trials=2)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_needs_rows(tmp_path):
    with pytest.raises(ConfigError, match="there is no eval_dataset: pass one"):
        DistillTrainer("no such model", "nor this", config(tmp_path, eval_steps=1), train_dataset=rows(2))


def test_a_metric_that_is_not_measured_is_named_at_the_first_evaluation(tmp_path, monkeypatch):
    measuring(monkeypatch, 1.0)
    made = trainer(tmp_path, eval_dataset=rows(2), metric_for_best_model="forward_kl", eval_steps=1)
    with pytest.raises(ConfigError, match="'forward_kl', which this run does not compute; use one of loss"):
        made.evaluate()


def hub(monkeypatch: pytest.MonkeyPatch, *, offline: bool, token: str | None) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", unreachable)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"offline": True, "token": "x"}, "push_to_hub needs network access, but HF_HUB_OFFLINE is set"),
        ({"offline": False, "token": None}, "push_to_hub needs a token: run 'hf auth login'"),
        ({"offline": False, "token": "x"}, r"the hub does not respond.*\(ConnectionError: no route\)"),
    ],
    ids=str,
)
def test_whether_the_hub_takes_a_student_is_seen_before_it_is_loaded(state, says, tmp_path, monkeypatch):
    hub(monkeypatch, **state)
    with pytest.raises(ConfigError, match=says):
        DistillTrainer("no such model", "nor this", config(tmp_path, push_to_hub=True), train_dataset=rows(2))
