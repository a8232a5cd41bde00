"""The source and the teacher of a run at work: what they need from the trainer, and what a checkpoint keeps of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd.data import Example
from abkd.errors import ConfigError, OutputDirError
from abkd.generation import Completion, Sampling, write_completions
from abkd.sources import (
    Dataset,
    Generators,
    Step,
    Stream,
    TeacherText,
    TeacherWriter,
    ensure_teacher_text,
    known_sequences,
    needs_teacher_text,
    open_source,
    writing_bar,
)
from abkd.storage import atomic_write
from abkd.tasks import Models, teacher_writer
from abkd.trainer._finite import check_tensors

if TYPE_CHECKING:
    from abkd.config import DistillConfig
    from abkd.trainer._trainer import DistillTrainer

_TEACHER_FILE = "abkd_teacher.safetensors"


class SequenceSampler:
    """The stream of a run's source: draws for a step, keeps its state in checkpoints, is told of evaluations."""

    def __init__(self, trainer: DistillTrainer, teacher_text: Any) -> None:
        self.trainer = trainer
        self._seconds, self._tokens = 0.0, 0
        writers = Generators(
            student=self.write_as_student,
            teacher_text=teacher_text,
            num_generations=trainer.distill_args.num_generations,
            in_any_process=lambda flag: bool(trainer.max_over_processes(int(flag))),
        )
        source = trainer.distill_args.source
        self.stream: Stream = open_source(source, writers)

    def draw(self, rows: Sequence[Example]) -> list[list[Example]]:
        """The sequences of the step that begins."""
        trainer = self.trainer
        at = Step(trainer.state.global_step, trainer.progress, trainer.args.seed, trainer.args.process_index)
        return self.stream.draw(rows, at)

    def write_as_student(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        """What the student of this moment writes."""
        start = time.perf_counter()
        written = write(self.trainer, self.trainer.model, prompts, sampling, seed=seed)
        self._seconds += time.perf_counter() - start
        self._tokens += sum(len(completion.ids) for completion in written)
        return written

    def logs(self) -> dict[str, float]:
        """What was drawn since the last log, and how fast it was written."""
        found = self.stream.logs()
        if self._tokens:
            found["generated_tokens_per_second"] = self._tokens / self._seconds
        self._seconds, self._tokens = 0.0, 0
        return found


def open_sampler(trainer: DistillTrainer) -> SequenceSampler | None:
    """The source of a run at work, with what its teacher has to write beforehand; None where the data is all of it.

    Raises:
        DataError: the teacher's rows are read from a cache that lacks some.
    """
    args, teacher, train = trainer.distill_args, trainer.models.teacher, trainer.train_dataset
    if train is None:
        return None
    text = teacher_text(trainer)
    source = args.source
    if teacher is not None and args.teacher.cached:
        rows: Any = train
        asked = trainer.task.teacher_queries() if source == Dataset() else known_sequences(source, rows, text)
        teacher.check_covers(asked, "train")
        if trainer.eval_dataset is not None:
            teacher.check_covers(trainer.eval_dataset, "eval")  # type: ignore[arg-type]
    return None if source == Dataset() else SequenceSampler(trainer, text)


def teacher_text(trainer: DistillTrainer) -> TeacherText | None:
    """What the teacher wrote, or writes now, for the source of a run; None where nothing in it asks for that.

    Raises:
        ConfigError: there is nobody to write.
    """
    args, models = trainer.distill_args, trainer.models
    source = args.source
    if not needs_teacher_text(source):
        return None
    train: Any = trainer.train_dataset
    with writing_bar() as progress:
        return ensure_teacher_text(
            source,
            train,
            _writer(args, models),
            process=trainer.args.process_index,
            processes=trainer.args.world_size,
            progress=progress,
        )


def _writer(args: DistillConfig, models: Models) -> TeacherWriter:
    """The teacher of a run as a writer: a server if one is named, else its model.

    Raises:
        ConfigError: there are several, or none.
    """
    url, loaded = args.teacher_model_server_url, [] if models.teacher is None else list(models.teacher.models)
    named = models.teacher_names
    if not url and not named and len(loaded) != 1:
        raise ConfigError(
            f"TeacherSamples needs one teacher that writes, which {args.teacher!r} is not: name it in "
            "teacher_model_name_or_path, or its server in teacher_model_server_url"
        )
    return teacher_writer(
        args,
        models.tokenizer,
        name=named[0] if named else "" if url else loaded[0],
        revision=models.teacher_revision,
        url=url,
        load=(lambda: loaded[0]) if len(loaded) == 1 else None,
        classes=models.classes,
        batch_size=args.per_device_eval_batch_size,
    )


def write(
    trainer: DistillTrainer, model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int
) -> list[Completion]:
    """What a model writes under the settings of a run: at most what max_length leaves room for."""
    args = trainer.distill_args
    synced = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    asked = list(prompts)
    if synced:  # every process has to take part in every forward: as many prompts for each
        most = trainer.max_over_processes(len(asked))
        asked += [asked[0] if asked else [0]] * (most - len(asked))
    if not asked:
        return []
    with trainer.accelerator.autocast():
        written = write_completions(
            model,
            trainer.models.tokenizer,
            asked,
            sampling,
            max_new_tokens=[min(args.max_completion_length, args.max_length - len(prompt)) for prompt in asked],
            classes=trainer.models.classes,
            seed=seed,
            batch_size=args.per_device_eval_batch_size,
            generation_kwargs=args.generation_kwargs,
            synced=synced,
        )
    return written[: len(prompts)]


def save_state(trainer: DistillTrainer, checkpoint: Path) -> None:
    """Write what source and teacher must know to go on; each process its own buffer.

    (The teacher's is the same in all of them.)
    """
    if trainer.sampler is not None:
        atomic_write(checkpoint / _source_file(trainer), json.dumps(trainer.sampler.stream.state()).encode())
    teacher = trainer.models.teacher
    state = {} if teacher is None else teacher.state()
    check_tensors(state.items(), "what the teacher keeps of the student")
    if state and trainer.args.should_save:
        save_file(state, checkpoint / _TEACHER_FILE)


def load_state(trainer: DistillTrainer, checkpoint: Path) -> None:
    """Go on from a checkpoint.

    Raises:
        OutputDirError: it holds nothing of this source or teacher, was made by another number of processes, or in
            shards where this run has none (or the other way round).
    """
    _check_form(trainer, checkpoint)
    if trainer.sampler is not None:
        file = checkpoint / _source_file(trainer)
        if not file.is_file():
            raise OutputDirError(
                f"cannot resume from {checkpoint}: {file.name} is missing, so it was made with another source or by "
                "another number of processes; resume with those, or start anew in another output_dir"
            )
        trainer.sampler.stream.load(json.loads(file.read_text(encoding="utf-8")))
    file = checkpoint / _TEACHER_FILE
    if trainer.models.teacher is not None:
        trainer.models.teacher.load(load_file(file) if file.is_file() else {})


def _check_form(trainer: DistillTrainer, checkpoint: Path) -> None:
    """Refuse a checkpoint whose optimizer this run could not read: transformers would fail, or begin it anew."""
    sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    if sharded != bool(trainer.is_fsdp_enabled):
        forms = ("from one process or replicas (DDP)", "in shards (FSDP)")
        raise OutputDirError(
            f"cannot resume from {checkpoint}: it was saved {forms[sharded]}, and this run is not; launch it as "
            "before, or start anew in another output_dir"
        )


def check_unsharded(trainer: DistillTrainer) -> None:
    """Raise ConfigError where a teacher would be made of a student that is in shards."""
    spec = trainer.distill_args.teacher
    if spec.needs[0] == 0 and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ConfigError(
            f"{spec!r} is made of the whole student, and FSDP and DeepSpeed keep it in parts: train replicas (DDP), or "
            "name a teacher"
        )


def _source_file(trainer: DistillTrainer) -> str:
    return f"abkd_source-{trainer.args.process_index}-of-{trainer.args.world_size}.json"


class ComponentCallback(TrainerCallback):
    """Tells the teacher of each step, and the source of each evaluation."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 0:  # also where auto_find_batch_size begins again
            self.trainer.saved_step, self.trainer._sums = -1, {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.models.teacher is not None:
            self.trainer.models.teacher.after_step(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        metrics: Mapping[str, float] = event.get("metrics") or {}
        if self.trainer.sampler is not None:
            self.trainer.sampler.stream.observe(metrics)
