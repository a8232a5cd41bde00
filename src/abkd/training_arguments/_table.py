"""Table of every field of ``transformers.TrainingArguments``: it works, changes nothing, or is refused.

Our trainer replaces the loss, the evaluation and the order of the rows, so some of these fields would be accepted and
then do nothing. ``tests/test_training_arguments.py`` holds each field of the installed version against this table.
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
    "prediction_loss_only": "an evaluation keeps no prediction",
    "eval_accumulation_steps": "an evaluation keeps no prediction",
    "eval_do_concat_batches": "an evaluation keeps no prediction",
    "eval_use_gather_object": "an evaluation gathers sums alone",
    "log_on_each_node": "the first process alone writes",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "run_name": "a label for trackers",
    "logging_dir": "where tensorboard's files go",
    "use_mps_device": "transformers takes such a device by itself",
    "ray_scope": "a search by Ray's, which does not start from here",
    "tpu_metrics_debug": "it prints, on TPUs",
    "local_rank": "launchers set it",
    "_n_gpu": "transformers sets it",
}

_OF_COMPUTE_METRICS = "it is about compute_metrics, and the held-out numbers are computed without a stored prediction"
REFUSED: Mapping[str, str] = {
    "label_smoothing_factor": "it smooths the labels of a loss that is not computed here: the teacher's distribution "
    "softens the targets (kd_weight, kd_temperature)",
    "bf16_full_eval": "an evaluation has the precision of the training: set bf16",
    "fp16_full_eval": "an evaluation has the precision of the training: set fp16",
    "torch_compile": "the loss is compiled where that pays, and the rest of a step would be compiled anew in each",
    "torch_compile_backend": "the loss is compiled where that pays, and the rest is not",
    "torch_compile_mode": "the loss is compiled where that pays, and the rest is not",
    "torchdynamo": "the loss is compiled where that pays, and the rest is not",
    "ddp_static_graph": "a step's graph depends on its rows",
    "save_on_each_node": "the first process alone saves: give all nodes an output_dir on storage that they share",
    "jit_mode_eval": "the evaluation is not traced",
    "use_liger_kernel": "it replaces the model's forward, in which the loss is computed; the logits of a whole batch "
    "are never built here either (memory_budget_mb)",
    "liger_kernel_config": "it belongs to use_liger_kernel, which has no place here",
    "use_cache": "training needs no key-value cache, and the student's own use_cache is saved as it came",
    "include_num_input_tokens_seen": "the tokens of a batch are not counted in this way; run.json has train_tokens",
    "include_tokens_per_second": "the tokens of a batch are not counted in this way; run.json has train_tokens",
    "average_tokens_across_devices": "the loss is always divided by the rows of all devices together",
    "include_for_metrics": _OF_COMPUTE_METRICS,
    "include_inputs_for_metrics": _OF_COMPUTE_METRICS,
    "batch_eval_metrics": _OF_COMPUTE_METRICS,
    "label_names": "what the labels are follows from the rows",
    "past_index": "no output of an earlier batch is carried over",
    "use_legacy_prediction_loop": "the held-out numbers are computed by another loop",
    "do_predict": "there is no prediction pass; abkd distill --num_train_epochs 0 evaluates a model",
    "remove_unused_columns": "rows are read as a whole: it would remove all of them",
    "train_sampling_strategy": "the rows are shuffled by the seed; for batches of similar length: "
    "group_by_length: true",
    "length_column_name": "lengths are counted when rows are tokenised; for batches of similar length: "
    "group_by_length: true",
    "dataloader_in_order": "a run could not be repeated if its batches came in any order",
    "dataloader_persistent_workers": "a resumed run would draw other random numbers than one that was never stopped",
    "ignore_data_skip": "--resume goes on exactly where the run stopped",
    "enable_jit_checkpoint": "a checkpoint is saved at Ctrl-C and SIGTERM anyway",
    "parallelism_config": "tensor and context parallelism are not supported; for several GPUs: accelerate "
    "launch, with fsdp",
    "save_safetensors": "weights are saved as safetensors",
    "half_precision_backend": "mixed precision is torch's own: set bf16",
    "fp16_backend": "mixed precision is torch's own: set bf16",
    "fp16_opt_level": "mixed precision is torch's own: set bf16",
    "adafactor": "it is optim: adafactor",
    "per_gpu_train_batch_size": "it is per_device_train_batch_size",
    "per_gpu_eval_batch_size": "it is per_device_eval_batch_size",
    "fsdp_min_num_params": "it is part of fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "it is part of fsdp_config",
    "push_to_hub_model_id": "it is hub_model_id",
    "push_to_hub_organization": "it is part of hub_model_id",
    "push_to_hub_token": "it is hub_token",
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
"""Fields that work where another setting is made, and mean nothing without it: which."""

OPTIM_ARGS: Mapping[str, str] = {
    "sgd": "momentum dampening nesterov",
    "adagrad": "lr_decay eps",
    "rmsprop": "momentum alpha eps centered",
}
"""Options of torch's optimizers that ``optim_args`` may set; those of other packages have their own."""
