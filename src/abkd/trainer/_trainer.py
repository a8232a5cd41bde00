"""``DistillTrainer``: transformers' Trainer with a teacher; overrides only the parts that distillation changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from abkd import output_dir
from abkd.config import DistillConfig
from abkd.models.loading import placed
from abkd.models.saving import use_cache_kept
from abkd.tasks import Given, Models, OpenTask, Task, open_objective, task_of
from abkd.trainer import _checkpoints, _sources
from abkd.trainer._accumulation import AccumulationBatch, resolve
from abkd.trainer._callbacks import EpochOrder, MetricsFile, ProgressBar, StopSignals
from abkd.trainer._distillation import DistillationLoss, run_inside
from abkd.trainer._engine import Engine
from abkd.trainer._evaluation import evaluate_run, warn_not_finite
from abkd.trainer._final import final_form
from abkd.trainer._finite import FiniteRun, check_loss
from abkd.trainer._optimizer import check_batches
from abkd.trainer._record import AlreadyEvaluated, Record
from abkd.trainer._run_file import load_chunk_plan, save_chunk_plan
from abkd.trainer._save import save_student
from abkd.trainer._settings import NothingLearned, check_metric, check_recomputed, check_settings, warn_extreme
from abkd.trainer._state import Components
from abkd.trainer._step import batch_of_step, begin_step
from abkd.trainer._terms import attached, without_terms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from abkd.models.vision import Classifier

logger = logging.getLogger("abkd")


class DistillTrainer(Engine):
    """Trains a student to match a teacher, with everything else as in ``transformers.Trainer``.

    Args:
        model: the student, or its name or path.
        teacher_model: the teacher, or its name or path (loaded in bf16 on a GPU), or several for an ensemble;
            frozen, never saved with the student. None if ``args.teacher`` is derived from the student, or for training
            on labels only.
        args: a :class:`abkd.DistillConfig`.
        train_dataset, eval_dataset: rows in one of the formats of ``abkd.data``, or tokenized ones; for images, any
            input of ``abkd.data.images.load_images``.
        pretrain_chunks: plain text for ``lm_coef``, as lists of token ids or as rows with a column ``text``.
        processing_class: the tokenizer that both models share; loaded from the student's path by default. None for
            images.
        peft_config: a PEFT configuration to train adapters only.

    Raises:
        ConfigError, DataError, VocabularyError: invalid settings, rows or tokenizers; raised before training.
    """

    # the loss is already divided by the weight of the whole accumulated batch (transformers >= 5.19)
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | Classifier | str,
        teacher_model: nn.Module | Classifier | str | Sequence[nn.Module | Classifier | str] | None = None,
        args: DistillConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        pretrain_chunks: object = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or DistillConfig(output_dir="distilled")
        check_settings(args, eval_dataset, callbacks, kwargs)
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs need several processes: torchrun or accelerate launch
        set_seed(args.seed)  # adapters are initialized randomly
        given = Given(model, teacher_model, train_dataset, eval_dataset, pretrain_chunks, processing_class, peft_config)
        self.kind: Task = task_of(args.task)
        self.task: OpenTask = self.kind.open(given, args)
        self.models: Models = self.task.models
        ours = self._assemble(args)
        with use_cache_kept(self.models.student.model, wanted=getattr(args, "use_cache", False)):
            super().__init__(
                model=self.models.student.model,
                args=args,
                data_collator=self.collator,
                train_dataset=self.task.train,
                eval_dataset=self.task.held_out,
                processing_class=self.models.tokenizer,
                callbacks=[*(callbacks or ()), *ours],
                **kwargs,
            )
        self.model_accepts_loss_kwargs = True  # as loss_is_scaled_for_ga, for transformers < 5.19
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        _sources.check_unsharded(self.run)
        for each in self.models.teacher.models if self.models.teacher is not None else ():
            placed(each, self.args.device)

    def _assemble(self, args: DistillConfig) -> tuple[TrainerCallback, ...]:
        """Build the parts of a run that are specific to distillation; returns their callbacks."""
        self.distill_args, models = args, self.models
        check_recomputed(models.student.model, args)
        self.plan = load_chunk_plan(args, self.task.max_rows, models.classes)
        objective = open_objective(args.objective(), models, args.seed)
        self.loss = DistillationLoss(models.student, models.teacher, objective, self.plan)
        self.collator = self.task.collate
        self.sampler: _sources.SequenceSampler | None = None
        self.run = self._context(args)
        self.record, self.finite = Record(self.run), FiniteRun(self.run)
        run_inside(models.student.model)
        self._restart()
        self._not_finite: set[str] = set()
        self._teacher_judged, self._most_kept = False, args.save_total_limit
        self.stop_signals, self.epoch_order = StopSignals(), EpochOrder()
        self.progress_bar = ProgressBar(one_loss=not objective.spec.changes)
        self.components = Components(self.run, lambda: self.sampler, self.sums, self._restart)
        watching = MetricsFile(), NothingLearned(), self.finite, self.components, AlreadyEvaluated(self.record)
        return self.epoch_order, *watching, self.stop_signals, self.progress_bar

    # -- the loss ------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and the :class:`AccumulationBatch` that prepares them."""
        if self.state.global_step >= self.state.max_steps:  # a finished run was resumed: no steps are left
            return [], None
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        return samples, AccumulationBatch([sample["batch"] for sample in samples])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers; the first micro-batch of a step generates the sequences and counts the totals."""
        step = num_items_in_batch
        if isinstance(step, AccumulationBatch) and step.totals is None:
            if self.sampler is not None:
                step.write(self.sampler.draw, self.collator)
            self.sums.begin_step()
            begin_step(self.run, model, step)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """``Σ over this micro-batch / weight of the whole step × processes``: gradients are averaged over processes."""
        batch, totals, columns = batch_of_step(self.run, resolve(inputs["batch"]), num_items_in_batch)
        out = model(job=lambda: self.loss.losses(batch, self.progress, totals, columns))
        check_loss(out, self.state.global_step + 1)
        self.sums.add(out)
        loss = out["loss"] * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means over the rows since the last log: divergence, entropies, agreement, cross-entropy."""
        if "loss" in logs and (means := self.sums.since_log(self.run.processes)):
            logs |= means | self.components.logs()
        super().log(logs, *args, **kwargs)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Distances to the teacher and the task's metrics, computed by the op without gathering logits."""
        optimizer: Any = self.optimizer
        if hasattr(optimizer, "eval"):  # schedule-free optimizers evaluate other weights than they train
            optimizer.eval()
        values = evaluate_run(self.run, dataloader)
        warn_not_finite(self.run, self.finite, values, self._not_finite)
        check_metric(self.distill_args, values)
        if not self._teacher_judged and self.is_world_process_zero():
            self.task.check_teacher(values)
        self._teacher_judged = True
        values = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        nothing: Any = ()  # logits are never stored
        return EvalLoopOutput(nothing, label_ids=None, metrics=values, num_samples=self.num_examples(dataloader))

    # -- the run -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; ``resume_from_checkpoint=True`` resumes from the latest *complete* checkpoint.

        Raises:
            NonFiniteError: a loss, gradient or weight is not finite; it was not saved.
            Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved, ``exit_code`` is 130 or 143.
            StorageError: a checkpoint could not be written; the previous one, if any, is complete.
            OutputDirError: there is no complete checkpoint to resume from.
        """
        resume_from_checkpoint = resume_from_checkpoint or self.args.resume_from_checkpoint
        with output_dir.claimed(Path(str(self.args.output_dir))) if self.is_world_process_zero() else nullcontext():
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, *args: Any, **kwargs: Any) -> TrainOutput:
        check_batches(self.args, self.train_dataset)
        start = _checkpoints.choose(Path(str(self.args.output_dir)), resume_from_checkpoint)
        if start is not None and not self.is_deepspeed_enabled:
            _checkpoints.check_optimizer(start)
            _checkpoints.check_student(start, self.models.student.model)
        if start is None:
            self.record.make_room()
        logger.info("abkd: %s", self.loss.objective.spec.formula(self.kind.row_noun))
        warn_extreme(self.distill_args)
        self.sums.reset()
        self.saved_step, self._teacher_judged = _checkpoints.step_of(start), start is not None
        self.sampler = _sources.open_sampler(self.run)
        if start is not None:
            self.components.load(start)
        self.record.begin(start)
        if start is None and self.is_world_process_zero():
            steps = {"writes": self.sampler is not None, "evaluates_first": self.args.eval_on_start}
            self.task.before_training(sharded=self.run.sharded(), **steps)
        self._most_kept, self.args.save_total_limit = self.args.save_total_limit, None  # rotated by _checkpoints.rotate
        self.args.eval_on_start = self.eval_dataset is not None and start is None
        try:
            with attached(self.loss.objective, self.models.student.model, self.args.device):
                output = super().train(None if start is None else str(start), *args, **kwargs)
        finally:
            self.args.save_total_limit = self._most_kept
            self.progress_bar.close()
            self.stop_signals.restore()
        if self.stop_signals.stopped:
            raise self.stop_signals.error(self.state.global_step, self.args.output_dir)
        if self.eval_dataset is not None and not self.record.is_evaluated():
            self.evaluate()  # or the last metrics would not be those of the trained student
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.saved_step == self.state.global_step:  # rewriting it would leave no complete checkpoint meanwhile
            return
        checkpoint = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self.finite.check_weights("no checkpoint was written; lower the learning rate")
        with _checkpoints.writing(checkpoint, clear=self.args.should_save, before=self.saved_step > 0):
            if self.args.should_save:
                output_dir.note(checkpoint.parent, checkpoint.name)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.components.save(checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_chunk_plan(Path(str(self.args.output_dir)), self.loss.plan)
                _checkpoints.seal(checkpoint)
                _checkpoints.rotate(checkpoint, self._most_kept, self.state.best_model_checkpoint)
        self.saved_step = self.state.global_step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student in its original format, with its tokenizer, completely or not at all; also if it is sharded.

        In the run's own ``output_dir`` this ends the run: ``report.html`` and ``result.json`` are written last.

        Raises:
            NonFiniteError: a weight is not finite.
            StorageError: the disk is full or not writable; the message says where the trained weights are.
        """
        if _internal_call:
            with _checkpoints.original_weight_names(self.accelerator.unwrap_model(self.model)):
                super().save_model(output_dir, _internal_call)
            _checkpoints.drop_pickle(output_dir or self.args.output_dir)
            return
        self.finite.check_weights("the student was not saved; lower the learning rate")
        own = Path(str(self.args.output_dir))
        trained = self.model
        self.model, metrics = final_form(self.run, self.get_eval_dataloader)
        try:
            if metrics:
                self.log(metrics)
            save_student(self.run, Path(output_dir or own), self._write_student, saved_step=self.saved_step)
        finally:
            self.model = trained
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        if Path(output_dir or own) == own:
            self.record.finish()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        whole = _checkpoints.unshared(self.accelerator.unwrap_model(self.model), state_dict)
        super()._save(output_dir, without_terms(whole))

    def _write_student(self, directory: Path) -> None:
        if self.is_fsdp_enabled:
            self._save(str(directory), state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(str(directory), _internal_call=True)  # no push: files are still missing
        _checkpoints.drop_pickle(directory)
        if self.args.should_save:
            student, model = self.models.student, self.accelerator.unwrap_model(self.model)
            saved = self.task if model is student.model else self.task.with_student(student.of(model))
            saved.save_extras(directory)
