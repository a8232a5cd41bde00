"""Table of every field of ``transformers.TrainingArguments``: it works, changes nothing, or is refused.

Our trainer replaces the loss, the evaluation and the order of the rows, so some of these fields would be accepted and
then ignored. ``tests/test_training_arguments.py`` checks each field of the installed version against this table.
"""

from __future__ import annotations

from collections.abc import Mapping

WORKS = frozenset(
    """
    output_dir per_device_train_batch_size per_device_eval_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim optim_args optim_target_modules weight_decay
    adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps max_grad_norm bf16 fp16 tf32
    activation_checkpointing gradient_checkpointing
    neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step
    log_level log_level_replica disable_tqdm report_to eval_strategy eval_steps eval_delay eval_on_start save_strategy
    save_steps save_total_limit save_only_model push_to_hub load_best_model_at_end
    metric_for_best_model greater_is_better full_determinism seed data_seed use_cpu no_cuda accelerator_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_prefetch_factor dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_backend ddp_timeout fsdp deepspeed debug skip_memory_metrics
    resume_from_checkpoint group_by_length overwrite_output_dir restore_callback_states_from_checkpoint
    """.split()
)

HARMLESS: Mapping[str, str] = {
    "do_train": "the command trains",
    "do_eval": "held-out rows are evaluated",
    "prediction_loss_only": "evaluation stores no predictions",
    "eval_accumulation_steps": "evaluation stores no predictions",
    "eval_do_concat_batches": "evaluation stores no predictions",
    "eval_use_gather_object": "evaluation gathers only sums",
    "log_on_each_node": "only the first process writes logs",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "run_name": "a label for trackers",
    "logging_dir": "the directory of tensorboard's files",
    "use_mps_device": "transformers selects this device by itself",
    "ray_scope": "for Ray Tune searches, which are not started from here",
    "tpu_metrics_debug": "it prints metrics on TPUs",
    "local_rank": "launchers set it",
    "_n_gpu": "transformers sets it",
}

_OF_COMPUTE_METRICS = "it applies to compute_metrics, and the evaluation metrics are computed without it"
REFUSED: Mapping[str, str] = {
    "label_smoothing_factor": "it smooths the labels of a loss that is not computed here: the teacher's distribution "
    "softens the targets (kd_weight, kd_temperature)",
    "bf16_full_eval": "evaluation uses the precision of training: set bf16",
    "fp16_full_eval": "evaluation uses the precision of training: set fp16",
    "torch_compile": "the loss is compiled where that is faster, and the rest would be recompiled at every step",
    "torch_compile_backend": "the loss is compiled where that is faster, and the rest is not",
    "torch_compile_mode": "the loss is compiled where that is faster, and the rest is not",
    "torchdynamo": "the loss is compiled where that is faster, and the rest is not",
    "ddp_static_graph": "the graph of a step depends on its rows",
    "save_on_each_node": "only the first process saves: use an output_dir on storage that all nodes share",
    "jit_mode_eval": "the evaluation is not traced",
    "use_liger_kernel": "it replaces the model's forward, in which the loss is computed; the logits of a whole batch "
    "are never materialised here either (memory_budget_mb)",
    "liger_kernel_config": "it belongs to use_liger_kernel, which has no effect here",
    "use_cache": "training needs no key-value cache, and the student's own use_cache is saved unchanged",
    "include_num_input_tokens_seen": "tokens are counted in another way; see train_tokens in run.json",
    "include_tokens_per_second": "tokens are counted in another way; see train_tokens in run.json",
    "average_tokens_across_devices": "the loss is always averaged over the rows of all devices",
    "include_for_metrics": _OF_COMPUTE_METRICS,
    "include_inputs_for_metrics": _OF_COMPUTE_METRICS,
    "batch_eval_metrics": _OF_COMPUTE_METRICS,
    "label_names": "the labels follow from the rows",
    "past_index": "no output of an earlier batch is reused",
    "use_legacy_prediction_loop": "the evaluation metrics are computed by another loop",
    "do_predict": "there is no prediction pass; abkd distill --num_train_epochs 0 evaluates a model",
    "remove_unused_columns": "rows are read as a whole: it would remove all columns",
    "train_sampling_strategy": "the rows are shuffled by the seed; for batches of similar length, set "
    "group_by_length: true",
    "length_column_name": "lengths are computed when rows are tokenised; for batches of similar length, set "
    "group_by_length: true",
    "dataloader_in_order": "batches in any order would make a run irreproducible",
    "dataloader_persistent_workers": "a resumed run would draw other random numbers than an uninterrupted one",
    "ignore_data_skip": "--resume continues exactly where the run stopped",
    "enable_jit_checkpoint": "a checkpoint is always saved on Ctrl-C and SIGTERM",
    "parallelism_config": "tensor and context parallelism are not supported; for several GPUs, use accelerate "
    "launch, with fsdp",
    "save_safetensors": "weights are always saved as safetensors",
    "half_precision_backend": "mixed precision always uses PyTorch's own: set bf16",
    "fp16_backend": "mixed precision always uses PyTorch's own: set bf16",
    "fp16_opt_level": "mixed precision always uses PyTorch's own: set bf16",
    "adafactor": "use optim: adafactor",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "fsdp_min_num_params": "set it in fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "set it in fsdp_config",
    "push_to_hub_model_id": "use hub_model_id",
    "push_to_hub_organization": "put it into hub_model_id",
    "push_to_hub_token": "use hub_token",
    "tpu_num_cores": "TPUs are not supported",
    "mp_parameters": "SageMaker's model parallelism is not supported",
}

OF_HUB = ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision")
OF_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
BELONGS: Mapping[str, str] = {
    **dict.fromkeys(OF_HUB, "push_to_hub: true"),
    **dict.fromkeys(OF_TRACKIO, "report_to: trackio"),
    "fsdp_config": "fsdp",
    "activation_checkpointing_kwargs": "activation_checkpointing: true",
    "gradient_checkpointing_kwargs": "gradient_checkpointing: true",
}
"""Fields that have an effect only with another setting, and that setting."""

OPTIM_ARGS: Mapping[str, str] = {
    "sgd": "momentum dampening nesterov",
    "adagrad": "lr_decay eps",
    "rmsprop": "momentum alpha eps centered",
}
"""Options of torch's optimizers that ``optim_args`` may set; optimizers of other packages have their own."""
