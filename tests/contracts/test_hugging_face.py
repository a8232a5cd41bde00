"""The parts of transformers, accelerate and PEFT that we override or read, checked on the installed versions.

If one of these fails after an upgrade, check the module named in the test's comment.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from abkd import DistillConfig, DistillTrainer
from abkd.trainer._callbacks import EpochOrder, MetricsFile, ProgressBar, StopSignals
from abkd.trainer._finite import FiniteRun
from abkd.trainer._record import AlreadyEvaluated
from abkd.trainer._state import Components
from training_parts import llama

OVERRIDDEN = [
    "create_scheduler",
    "get_decay_parameter_names",
    "get_optimizer_cls_and_kwargs",
    "get_batch_samples",
    "training_step",
    "compute_loss",
    "log",
    "_get_dataloader",
    "_get_train_sampler",
    "_get_eval_sampler",
    "floating_point_ops",
    "evaluation_loop",
    "evaluate",
    "predict",
    "hyperparameter_search",
    "create_accelerator_and_postprocess",
    "_determine_best_metric",
    "train",
    "_save_checkpoint",
    "_save",
    "save_model",
]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_takes_what_the_original_takes(name):  # abkd.trainer
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(getattr(DistillTrainer, name)).parameters
    kinds = {parameter.kind for parameter in ours.values()}
    named = [parameter for parameter in ours if ours[parameter].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert named == list(theirs)[: len(named)]
    if not kinds >= {inspect.Parameter.VAR_KEYWORD}:
        assert named == list(theirs)


def test_the_overrides_are_all_there_are():
    of_ours = [kind for kind in DistillTrainer.__mro__ if kind.__module__.startswith("abkd.")]
    ours = {name: value for kind in reversed(of_ours) for name, value in vars(kind).items()}
    known = {name for name, value in ours.items() if inspect.isfunction(value) or isinstance(value, staticmethod)}
    inherited = {name for name in known if hasattr(Trainer, name)} - {"__init__"}
    assert inherited == set(OVERRIDDEN)


@pytest.mark.parametrize("name", ["_wrap_model", "_save", "_get_output_dir", "is_world_process_zero", "num_examples"])
def test_what_is_called_is_there(name):
    assert callable(getattr(Trainer, name))


def test_the_loss_is_not_divided_again():  # loss_is_scaled_for_ga, or model_accepts_loss_kwargs before it
    source = inspect.getsource(Trainer.training_step)
    assert ("loss_is_scaled_for_ga" in source) or ("model_accepts_loss_kwargs" in source)


@pytest.mark.parametrize(
    "callback", [EpochOrder, MetricsFile, ProgressBar, StopSignals, FiniteRun, Components, AlreadyEvaluated]
)
def test_callbacks_answer_to_known_events(callback):
    events = {name for name in vars(callback) if name.startswith("on_")}
    assert events
    assert events <= set(dir(TrainerCallback))


def test_our_callbacks_come_after_the_default_flow():  # or what they set would be overwritten
    handler = CallbackHandler([DefaultFlowCallback(), StopSignals()], None, None, None, None)
    kinds = [type(callback) for callback in handler.callbacks]
    assert kinds.index(DefaultFlowCallback) < kinds.index(StopSignals)


def test_state_and_control_have_what_we_read():
    state, control = TrainerState(), TrainerControl()
    for name in ("global_step", "max_steps", "epoch", "best_model_checkpoint", "is_world_process_zero", "log_history"):
        assert hasattr(state, name)
    for name in ("should_save", "should_log", "should_evaluate", "should_training_stop"):
        assert getattr(control, name) is False


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_sampler_of_ours_is_kept_and_split_without_repeats(skipped):  # abkd.data.order
    sampler = BatchSampler(SequentialSampler(range(12)), 2, drop_last=False)
    seen = []
    for process in range(2):
        shard = BatchSamplerShard(sampler, num_processes=2, process_index=process)
        loader = skip_first_batches(DataLoader(range(12), batch_sampler=shard), skipped)
        seen.append([batch.tolist() for batch in loader])
    steps = [sorted(mine + theirs) for mine, theirs in zip(*seen, strict=True)]
    assert steps == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]][skipped:]


def test_a_model_has_the_parts_we_read_rows_from():  # abkd.models.language
    model = llama(0)
    ids = torch.tensor([[1, 2, 3]])
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(model.get_output_embeddings()(hidden), model(input_ids=ids).logits)
    assert model.config.get_text_config() is model.config
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_a_peft_model_has_its_base_model():
    from peft import PeftModel

    assert callable(PeftModel.get_base_model)


def test_training_arguments_we_set_exist():  # abkd.config
    fields = DistillConfig.__dataclass_fields__
    for name in ("eval_on_start", "logging_nan_inf_filter", "remove_unused_columns", "save_total_limit", "data_seed"):
        assert name in fields
    made = DistillConfig(output_dir="run", use_cpu=True)
    for name in ("world_size", "n_gpu", "should_save", "process_index", "train_batch_size", "eval_batch_size"):
        assert hasattr(made, name)
    assert made._n_gpu <= 1


def test_the_version_is_one_we_know():
    major, minor = map(int, transformers.__version__.split(".")[:2])
    assert (major, minor) >= (4, 57)
