"""The source and the teacher of a run at work: what they need from the trainer, and what a checkpoint keeps of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd.config import DistillConfig
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
from abkd.teachers import TeacherReader
from abkd.trainer._context import RunContext
from abkd.trainer._finite import check_tensors

_TEACHER_FILE = "abkd_teacher.safetensors"


class SequenceSampler:
    """The stream of a run's source: draws for a step, keeps its state in checkpoints, observes evaluations."""

    def __init__(self, run: RunContext, teacher_text: Any) -> None:
        self.run = run
        self._seconds, self._tokens = 0.0, 0
        writers = Generators(
            student=self.write_as_student,
            teacher_text=teacher_text,
            num_generations=run.args.num_generations,
            in_any_process=lambda flag: bool(run.processes.max(int(flag))),
        )
        self.stream: Stream = open_source(run.args.source, writers)

    def draw(self, rows: Sequence[Example]) -> list[list[Example]]:
        """The sequences of the step that starts."""
        run = self.run
        return self.stream.draw(rows, Step(run.step, run.progress, run.args.seed, run.processes.index))

    def write_as_student(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        """Completions of the prompts by the student with its current weights."""
        start = time.perf_counter()
        written = write(self.run, self.run.model(), prompts, sampling, seed=seed)
        self._seconds += time.perf_counter() - start
        self._tokens += sum(len(completion.ids) for completion in written)
        return written

    def logs(self) -> dict[str, float]:
        """Statistics of the sequences drawn since the last log, and the speed of writing them."""
        found = self.stream.logs()
        if self._tokens:
            found["generated_tokens_per_second"] = self._tokens / self._seconds
        self._seconds, self._tokens = 0.0, 0
        return found


def open_sampler(run: RunContext) -> SequenceSampler | None:
    """The source of a run, with what its teacher has to write beforehand; None where the data is all of it.

    Raises:
        DataError: the teacher's rows are read from a cache that lacks some.
    """
    args, task, teacher = run.args, run.task, run.task.models.teacher
    if task.train is None:
        return None
    text, source = teacher_text(run), args.source
    if teacher is not None and args.teacher.cached:
        rows: Any = task.train
        queries = task.teacher_queries() if source == Dataset() else known_sequences(source, rows, text)
        teacher.check_covers(queries, "train")
        if task.held_out is not None:
            held_out: Any = task.held_out
            teacher.check_covers(held_out, "eval")
    return None if source == Dataset() else SequenceSampler(run, text)


def teacher_text(run: RunContext) -> TeacherText | None:
    """The text that the teacher wrote, or writes now, for the source of a run; None if nothing in it needs that.

    Raises:
        ConfigError: there is no teacher that can write.
    """
    if not needs_teacher_text(run.args.source):
        return None
    train: Any = run.task.train
    with writing_bar() as progress:
        return ensure_teacher_text(
            run.args.source,
            train,
            _writer(run.args, run.task.models),
            process=run.processes.index,
            processes=run.processes.count,
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
    run: RunContext, model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int
) -> list[Completion]:
    """Completions by a model under the settings of a run: at most as long as max_length leaves room for."""
    args, padded = run.args, list(prompts)
    if run.sharded():  # every process has to take part in every forward pass: as many prompts for each
        most = run.processes.max(len(padded))
        padded += [padded[0] if padded else [0]] * (most - len(padded))
    if not padded:
        return []
    with run.autocast():
        written = write_completions(
            model,
            run.task.models.tokenizer,
            padded,
            sampling,
            max_new_tokens=[min(args.max_completion_length, args.max_length - len(prompt)) for prompt in padded],
            classes=run.task.models.classes,
            seed=seed,
            batch_size=args.per_device_eval_batch_size,
            generation_kwargs=args.generation_kwargs,
            synced=run.sharded(),
        )
    return written[: len(prompts)]


def save_state(run: RunContext, sampler: SequenceSampler | None, checkpoint: Path) -> None:
    """Write what source and teacher need to continue; each process its own buffer.

    (The teacher's state is the same in all of them.)
    """
    if sampler is not None:
        atomic_write(checkpoint / _source_file(run), json.dumps(sampler.stream.state()).encode())
    teacher = run.task.models.teacher
    state = {} if teacher is None else teacher.state()
    check_tensors(state.items(), "what the teacher keeps of the student")
    if state and run.args.should_save:
        save_file(state, checkpoint / _TEACHER_FILE)


def load_state(run: RunContext, sampler: SequenceSampler | None, checkpoint: Path) -> None:
    """Continue from a checkpoint.

    Raises:
        OutputDirError: it holds nothing of this source or teacher, was made by another number of processes, or in
            shards where this run has none (or the other way round).
    """
    _check_form(run, checkpoint)
    if sampler is not None:
        file = checkpoint / _source_file(run)
        if not file.is_file():
            raise OutputDirError(
                f"cannot resume from {checkpoint}: {file.name} is missing, so it was made with another source or by "
                "another number of processes; resume with those, or start over in another output_dir"
            )
        sampler.stream.load(json.loads(file.read_text(encoding="utf-8")))
    file, teacher = checkpoint / _TEACHER_FILE, run.task.models.teacher
    if teacher is not None:
        teacher.load(load_file(file) if file.is_file() else {})


def _check_form(run: RunContext, checkpoint: Path) -> None:
    """Refuse a checkpoint whose optimizer this run could not read: transformers would fail, or start it over."""
    sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    if sharded != run.fsdp():
        forms = ("from one process or replicas (DDP)", "in shards (FSDP)")
        raise OutputDirError(
            f"cannot resume from {checkpoint}: it was saved {forms[sharded]}, and this run is not; launch it as "
            "before, or start over in another output_dir"
        )


def check_unsharded(run: RunContext) -> None:
    """Raise ConfigError if a teacher would be made of a student that is in shards."""
    spec = run.args.teacher
    if spec.needs[0] == 0 and run.sharded():
        raise ConfigError(
            f"{spec!r} is made of the whole student, and FSDP and DeepSpeed keep it in shards: train replicas (DDP), "
            "or name a teacher"
        )


def _source_file(run: RunContext) -> str:
    return f"abkd_source-{run.processes.index}-of-{run.processes.count}.json"


class ComponentCallback(TrainerCallback):
    """Passes each step on to the teacher, and each evaluation to the source.

    Args:
        sampler: returns the run's sampler, which is opened when training starts.
        restart: called when training starts at its first step, also where auto_find_batch_size starts over.
    """

    def __init__(
        self,
        teacher: TeacherReader | None,
        sampler: Callable[[], SequenceSampler | None],
        restart: Callable[[], None],
    ) -> None:
        self.teacher, self.sampler, self.restart = teacher, sampler, restart

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 0:
            self.restart()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.teacher is not None:
            self.teacher.after_step(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        metrics: Mapping[str, float] = event.get("metrics") or {}
        sampler = self.sampler()
        if sampler is not None:
            sampler.stream.observe(metrics)
