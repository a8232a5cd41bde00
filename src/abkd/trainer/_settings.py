"""Settings that only the trainer can judge, for they are about its data, its arguments or its first evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd.config import DistillConfig
from abkd.divergences import AlphaBeta
from abkd.errors import ConfigError
from abkd.trainer._hub import check_hub
from abkd.training_arguments import word

logger = logging.getLogger("abkd")

_NO_GRADIENT = 1e-9
_LARGE_RATE = 10.0  # SGD on images takes up to 1
_LARGE_EXPONENT = 30.0  # AlphaBeta(30, 1) of random models: a gradient of 1e-5 of forward KL's, (1000, 1): of 1e-15
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
    check_hub(args)
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


def say_what_is_extreme(args: DistillConfig) -> None:
    """Warn of numbers with which a run is likely to learn nothing or not to stay finite."""
    if args.learning_rate > _LARGE_RATE:
        logger.warning("abkd: learning_rate is %g; usual are 1e-5 to 1e-1", args.learning_rate)
    divergences = {term.divergence for term in args.objective().at_any_time()}
    for each in (divergence for divergence in divergences if isinstance(divergence, AlphaBeta)):
        if max(abs(each.alpha), abs(each.beta)) > _LARGE_EXPONENT:
            logger.warning(
                "abkd: %r takes probabilities to such powers that its gradient vanishes or overflows; take both "
                "between 0 and 1",
                each,
            )


class NothingLearned(TrainerCallback):
    """Says at the first log where the gradient is all but zero: such a run would end as it began."""

    def __init__(self) -> None:
        self.looked = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        norm = event["logs"].get("grad_norm")
        if norm is None or self.looked:
            return
        self.looked = True
        if norm < _NO_GRADIENT and state.is_world_process_zero:
            logger.warning(
                "abkd: the gradient of step %d is all but zero (its norm is %.1g), so nothing is learned: look at the "
                "divergence, kd_temperature and the weights, and whether the student equals its teacher already",
                state.global_step,
                norm,
            )
