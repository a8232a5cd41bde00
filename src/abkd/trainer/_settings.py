"""Settings that only the trainer can judge, for they are about its data, its arguments or its first evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from abkd.config import DistillConfig
from abkd.errors import ConfigError
from abkd.training_arguments import word

_NOT_CALLED = {
    "compute_metrics": "the held-out numbers are computed without storing predictions; evaluate the saved student",
    "preprocess_logits_for_metrics": "no logits are stored",
    "compute_loss_func": "the loss is the objective of DistillConfig: write a divergence of your own",
    "model_init": "pass the model",
}


def check_settings(args: DistillConfig, eval_dataset: Any, options: Mapping[str, Any]) -> None:
    """Refuse what transformers' Trainer takes and ours would never use, before a model is loaded.

    Raises:
        ConfigError: an argument without effect, or an evaluation of no rows.
    """
    for name, way_out in _NOT_CALLED.items():
        if options.get(name) is not None:
            raise ConfigError(f"{name} has no effect here: {way_out}")
    if eval_dataset is None and word(args.eval_strategy) != "no":
        raise ConfigError(
            f"eval_strategy is {word(args.eval_strategy)!r}, but there is no eval_dataset to evaluate on: pass one, or "
            "set eval_strategy: no"
        )


def check_metric(args: DistillConfig, values: Mapping[str, float]) -> None:
    """Raise ConfigError where the metric that chooses the best checkpoint was not measured."""
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if name not in values:
        raise ConfigError(
            f"metric_for_best_model is {name!r}, which this run does not measure; it measures {', '.join(values)}"
        )
