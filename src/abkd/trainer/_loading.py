"""Data loading: the rows of a run and their order, with the same number of batches for each process."""

from __future__ import annotations

import math
import multiprocessing
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Never

import torch
from torch.utils.data import Dataset, Sampler

from abkd.data.order import PadToMultiple, train_order
from abkd.data.prepared import ExampleDataset
from abkd.errors import ConfigError
from abkd.trainer._accumulation import DeferredCollator
from abkd.trainer._optimizer import OptimizerMixin
from abkd.training_arguments import word

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from abkd.config import DistillConfig
    from abkd.tasks import Models, OpenTask
    from abkd.trainer._callbacks import EpochOrder
    from abkd.trainer._sources import SequenceSampler


class DataLoading(OptimizerMixin):
    """The part of the trainer that creates data loaders."""

    distill_args: DistillConfig
    task: OpenTask
    models: Models
    collator: Callable[..., Any]
    sampler: SequenceSampler | None
    epoch_order: EpochOrder

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        _check_picklable(dataset, self.args)
        training = kwargs.get("is_training", False)
        drop_last = training and self.args.dataloader_drop_last
        if self.args.world_size > 1 and isinstance(dataset, ExampleDataset) and not drop_last:
            dataset = PadToMultiple(dataset, kwargs["batch_size"] * self.args.world_size)
        self.data_collator = DeferredCollator() if training and self.sampler is not None else self.collator
        configured, self.args.dataloader_drop_last = self.args.dataloader_drop_last, drop_last  # only in training
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.data_collator, self.args.dataloader_drop_last = self.collator, configured

    def _get_train_sampler(self, train_dataset: Dataset[object] | None = None) -> Sampler[int] | None:
        dataset: Any = train_dataset or self.train_dataset
        if not isinstance(dataset, ExampleDataset | PadToMultiple):
            return super()._get_train_sampler(dataset)
        self.epoch_order.order = train_order(
            dataset,
            batch_size=self.args.train_batch_size * self.args.world_size,
            by_length=self.distill_args.group_by_length,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self.epoch_order.order

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return torch.utils.data.SequentialSampler(eval_dataset)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in transformers; metrics of rows other than the run's own are returned, but not recorded.

        Args:
            eval_dataset: other rows, in any format that the trainer accepts as ``eval_dataset``.
            ignore_keys: has no effect here.
            metric_key_prefix: prefix of the metric names.

        Raises:
            DataError, ConfigError: invalid rows.
        """
        if eval_dataset is None or eval_dataset is self.eval_dataset:
            return super().evaluate(None, ignore_keys, metric_key_prefix)
        prepared: Any = self.task.prepare(eval_dataset)
        loader = self.get_test_dataloader(prepared)  # unlike the evaluation loader, it is never reused for other rows
        return self.evaluation_loop(loader, "Evaluation", metric_key_prefix=metric_key_prefix).metrics or {}

    def predict(self, test_dataset: object, *args: object, **kwargs: object) -> Never:
        """Raises ConfigError: logits are not stored."""
        raise ConfigError(
            "predict returns logits, and the trainer stores none: use evaluate(rows) for the metrics of other rows, "
            "and load the saved student for its logits"
        )

    def hyperparameter_search(self, *args: object, **kwargs: object) -> Never:
        """Raises ConfigError: it would rebuild the model for each trial, and the teacher's readers with it."""
        raise ConfigError(
            "hyperparameter_search is not supported: use abkd distill --grid and --seeds to run and compare several "
            "settings; in Python, create a trainer for each"
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in transformers, but the best step is chosen among the saved checkpoints, as only those can be loaded.

        The best metric is that of all evaluations, as early stopping needs it.
        """
        state, best = self.state, self.state.best_global_step
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if not math.isfinite(metrics.get(name, 0.0)):  # already logged
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if word(self.args.save_strategy) == "best" or not self.args.metric_for_best_model:
            return is_best
        state.best_global_step = best
        if self.control.should_save:
            before = next((each[name] for each in state.log_history if each["step"] == best and name in each), None)
            sign = -1 if self.args.greater_is_better else 1
            if before is None or sign * metrics[name] < sign * before:
                state.best_global_step = state.global_step
        return is_best

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the estimate of transformers includes neither the teacher nor the rows."""
        return 0


def _check_picklable(dataset: object, args: TrainingArguments) -> None:
    """Raise ConfigError if the rows cannot be pickled for data loader workers; forked workers share them already."""
    method = getattr(args, "dataloader_multiprocessing_context", None) or multiprocessing.get_start_method()
    if not args.dataloader_num_workers or method == "fork":
        return
    try:
        pickle.Pickler(_NullFile()).dump(dataset)
    except Exception as error:  # from pickle or from the user's code
        raise ConfigError(
            f"the rows cannot be pickled for the {args.dataloader_num_workers} workers of dataloader_num_workers, "
            f"started by {method} ({error}): define the dataset's class at the top level of a module, without open "
            "files and lambdas, or set dataloader_num_workers: 0"
        ) from error


class _NullFile:
    """A file that discards what is written to it."""

    def write(self, data: bytes) -> int:
        return len(data)
