"""``DistillTrainer``: transformers' Trainer with a teacher. Only what distillation needs is overridden."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from abkd.config import DistillConfig
from abkd.data import Collator, LengthGroupedSampler, TokenizedDataset
from abkd.errors import Interrupted, NonFiniteError, StorageError
from abkd.trainer import _checkpoints
from abkd.trainer._callbacks import FiniteGradients, MetricsFile, ProgressBar, StopSignals
from abkd.trainer._setup import Models, prepare_data, resolve_models, resolve_plan
from abkd.trainer._start import check_start
from abkd.trainer._task import LOGGED, Task, run_inside

logger = logging.getLogger("abkd")


class DistillTrainer(Trainer):
    """Trains a student to match a teacher, with everything else as in ``transformers.Trainer``.

    Args:
        model: the student, or its name or path.
        teacher_model: the teacher, or its name or path (loaded in bf16 on a GPU); frozen, never saved with the student.
        args: a :class:`abkd.DistillConfig`.
        train_dataset, eval_dataset: rows in one of the formats of ``abkd.data``, or tokenised ones.
        pretrain_chunks: token lists of plain text for ``lm_coef``.
        processing_class: the tokenizer that both models share; loaded from the student's path if not given.
        peft_config: a PEFT configuration to train adapters only.

    Raises:
        ConfigError, DataError, VocabularyError: before anything is trained.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the weight of the whole accumulated batch (transformers >= 5.19)

    def __init__(
        self,
        model: nn.Module | str,
        teacher_model: nn.Module | str,
        args: DistillConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        pretrain_chunks: Sequence[list[int]] | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        args = args or DistillConfig(output_dir="distilled")
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs need several processes: torchrun or accelerate launch
        self.models: Models = resolve_models(model, teacher_model, args, processing_class, peft_config)
        tokenizer = self.models.tokenizer
        train = prepare_data(train_dataset, self.models, args, "train", pretrain_chunks)
        held_out = prepare_data(eval_dataset, self.models, args, "eval")
        self.distill_args = args
        self.plan = resolve_plan(args, self.models)
        self.task = Task(self.models.student, self.models.teacher, args.objective(), self.plan)
        run_inside(self.models.student.model)
        self.stop_signals, self.progress_bar = StopSignals(), ProgressBar()
        super().__init__(
            model=self.models.student.model,
            args=args,
            data_collator=Collator(_pad_id(tokenizer)),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=[*callbacks, MetricsFile(), FiniteGradients(), self.stop_signals, self.progress_bar],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # the same for transformers < 5.19
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.models.teacher.model.to(self.args.device)
        self._sums: dict[str, Tensor] = {}

    # -- the loss ------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and their weight over all processes."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        total = sum((sample["batch"].weight.sum() for sample in samples), start=torch.zeros(()))
        return samples, self.accelerator.reduce(total.to(device), reduction="sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """``Σ over this micro-batch / weight of the whole step × processes``: gradients are averaged over processes."""
        batch = inputs["batch"].to(self.args.device)
        total = batch.weight.sum() if num_items_in_batch is None else num_items_in_batch
        out = model(job=lambda: self.task.losses(batch, self.progress, total))
        self._check_finite(out)
        for name in ("rows", *LOGGED):
            self._sums[name] = self._sums.get(name, 0.0) + out[name].detach().double()
        loss = out["loss"] * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]: what schedules are functions of."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def _check_finite(self, out: dict[str, Tensor]) -> None:
        if bool(torch.isfinite(out["loss"])):
            return
        step = self.state.global_step + 1
        if not bool(torch.isfinite(out["teacher_entropy"])):
            who, cure = "the teacher's logits contain NaN or +inf", "check the teacher (its dtype: try float32 or bfloat16)"
        elif not bool(torch.isfinite(out["student_entropy"])):
            who, cure = "the student's logits contain NaN or +inf", "lower the learning rate, or train in bf16 or fp32"
        else:
            who, cure = "the divergence is infinite", "a class is impossible for one model only: choose α, β > 0 or a skew KL"
        raise NonFiniteError(f"the loss of step {step} is not finite: {who}. No weight was changed by it; {cure}")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means over the rows since the last log: divergence, entropies, agreement, cross-entropy."""
        if "loss" in logs and self._sums:
            sums = {name: self.accelerator.reduce(value, reduction="sum").item() for name, value in self._sums.items()}
            rows = max(sums.pop("rows"), 1.0)
            logs |= {("top1_agreement" if name == "agreement" else name): value / rows for name, value in sums.items()}
            self._sums = {}
        super().log(logs, *args, **kwargs)

    # -- data ----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        dataset = train_dataset or self.train_dataset
        if not (self.distill_args.group_by_length and isinstance(dataset, TokenizedDataset)):
            return super()._get_train_sampler(dataset)
        size = self.args.train_batch_size * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(dataset.lengths, size, seed=seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return torch.utils.data.SequentialSampler(eval_dataset)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the estimate of transformers knows neither teacher nor rows."""
        return 0

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Distances to the teacher and perplexities on held-out rows, by the op, without gathering a logit."""
        model = self._model_for_evaluation()
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for inputs in dataloader:
                batch = inputs["batch"].to(self.args.device)
                out = model(job=lambda batch=batch: self.task.distances(batch, self.progress))
                for name, value in out.items():
                    sums[name] = sums.get(name, 0.0) + value
        model.train()
        totals = {name: self.accelerator.reduce(value, reduction="sum").item() for name, value in sums.items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in _metrics(totals).items()}
        count = self.num_examples(dataloader)
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=count)

    def _model_for_evaluation(self) -> nn.Module:
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:
            prepare = self.accelerator.prepare if self.is_fsdp_enabled or self.is_deepspeed_enabled else None
            model = prepare(model) if prepare else self.accelerator.prepare_model(model, evaluation_mode=True)
            self.model_wrapped = model
        return model.eval()

    # -- the run -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """As in transformers; resumes from the newest *whole* checkpoint for ``resume_from_checkpoint=True``.

        Raises:
            NonFiniteError: a loss or gradient is not finite; nothing of it was saved.
            Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved, ``exit_code`` is 130 or 143.
            StorageError: a checkpoint could not be written; the one before it is whole.
            OutputDirError: there is no whole checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            checkpoint, passed = _checkpoints.newest_whole(Path(self.args.output_dir))
            for sentence in passed:
                logger.warning("abkd: %s", sentence)
            resume_from_checkpoint = str(checkpoint)
        logger.info("abkd: %s", self.task.objective.formula())
        if not resume_from_checkpoint:
            check_start(self)
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.progress_bar.close()
            self.stop_signals.restore()
        if self.stop_signals.received is not None:
            error = Interrupted(f"stopped by {self.stop_signals.received.name} after step {self.state.global_step}; "
                                f"a checkpoint was saved in {self.args.output_dir}: go on with --resume")  # fmt: skip
            error.exit_code = 128 + self.stop_signals.received
            raise error
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        run_dir = Path(self._get_output_dir(trial=trial))
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _checkpoints.seal(run_dir / f"checkpoint-{self.state.global_step}")
                _checkpoints.rotate(run_dir, limit, self.state.best_model_checkpoint)
        except (OSError, RuntimeError) as error:
            if not _disk_refused(error):
                raise
            raise StorageError(f"the checkpoint of step {self.state.global_step} could not be written in {run_dir}: {error}. "
                               "The one before it is whole; make room and go on with --resume") from error  # fmt: skip
        finally:
            self.args.save_total_limit = limit


def _disk_refused(error: BaseException) -> bool:
    """Whether an error says that there is no room (safetensors and torch wrap the system's error in their own)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("no space left", "os error 28", "file write failed", "disk quota", "file too large"))


def _metrics(totals: dict[str, float]) -> dict[str, float]:
    rows = max(totals["rows"], 1.0)
    return {
        "loss": totals["loss"] / rows,
        "forward_kl": totals["forward_kl"] / rows,
        "reverse_kl": totals["reverse_kl"] / rows,
        "top1_agreement": totals["agreement"] / rows,
        "perplexity": _exp(totals["cross_entropy"] / rows),
        "teacher_perplexity": _exp(totals["teacher_cross_entropy"] / rows),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0  # what stands in padding is masked and never trained
