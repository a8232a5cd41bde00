"""Files of a run other than its checkpoints: recipe, record, report and result; the same from CLI and Python."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
import yaml
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd import notation, output_dir
from abkd.config import DistillConfig
from abkd.data import TokenizedDataset
from abkd.data.prepared import ExampleDataset
from abkd.storage import atomic_write, disk_errors, strict_json, write_checksummed
from abkd.teachers.caches import weights_fingerprint
from abkd.trainer._callbacks import evaluated
from abkd.trainer._checkpoints import checkpoints
from abkd.trainer._context import RunContext
from abkd.trainer._run_file import RUN_FILE, read_record
from abkd.version import __version__

logger = logging.getLogger("abkd")

RECIPE_FILE = "recipe.yaml"
RESULT_FILE = "result.json"
"""The result with its checksum, written last: if it is complete, the run is finished."""
OURS = (RECIPE_FILE, RUN_FILE, "metrics.jsonl", "report.html", RESULT_FILE)

_NOT_RECORDED = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_dir", "run_name", "hub_token"}
_NOT_RECORDED |= {"push_to_hub_token", "accelerator_config", "log_level"}


class Record:
    """The recipe, record, report and result of a run.

    Attributes:
        recipe: the text of ``recipe.yaml``; generated from the trainer's arguments by default.
        changed: settings that differ in a resumed run, as ``{name: [then, now]}``.
    """

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.recipe: str | None = None
        self.changed: Mapping[str, object] = {}
        self._begun = False

    @property
    def directory(self) -> Path:
        """The run's output_dir."""
        return self.run.directory

    def begin(self, start: Path | None) -> None:
        """Write the files needed to repeat the run, and remove the result of an earlier one.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self._begun = True
        if not self.run.processes.is_main:
            return
        resumed = list(read_record(self.directory).get("resumed", [])) if start is not None else []
        resumed += [] if start is None else [{"from": start.name, "changed": dict(self.changed)}]
        with disk_errors(f"the record of the run in {self.directory}", "Free some disk space and start over"):
            self.directory.mkdir(parents=True, exist_ok=True)
            output_dir.note(self.directory, *OURS, *_tracked(self.run.args, self.directory))
            (self.directory / RESULT_FILE).unlink(missing_ok=True)
            text = self.recipe if self.recipe is not None else recipe_of(self.run)
            atomic_write(self.directory / RECIPE_FILE, text.encode(errors="backslashreplace"))
            record = describe(self.run) | ({"resumed": resumed} if resumed else {})
            record |= {"begun_in": "Python"} if self.recipe is None else {}
            atomic_write(self.directory / RUN_FILE, strict_json(record).encode())

    def make_room(self) -> None:
        """Before a new run: remove the files of an earlier one, or warn that they exist.

        Raises:
            OutputDirError: overwrite_output_dir is set, but the folder contains other files or an input.
        """
        directory, models = self.directory, self.run.task.models
        if self.run.processes.is_main:
            if self.run.args.overwrite_output_dir:
                given = [models.student.model, *getattr(models.teacher, "models", ())]
                output_dir.check_inputs(directory, {"a model": [model_name(model) for model in given]})
                output_dir.check_overwrite(directory)
                output_dir.remove_runs(directory)
            elif (old := checkpoints(directory)) and self.recipe is None:
                logger.warning(
                    "abkd: %s contains %s of an earlier run, from which --resume might continue: use another "
                    "output_dir, or set overwrite_output_dir",
                    directory,
                    old[-1].name,
                )
        self.run.processes.wait()

    def is_evaluated(self) -> bool:
        """Whether the last step was evaluated, in this run or in the one that it resumes."""
        done = self.run.processes.is_main and evaluated(self.directory, self.run.step)
        return self.run.processes.any(done)

    def finish(self) -> None:
        """Write the report and, last of all, the result; log where they are."""
        if not (self._begun and self.run.processes.is_main):
            return
        from abkd.report import write_report
        from abkd.report.results import read_result, sentences

        with disk_errors(
            f"the report of the run in {self.directory}",
            "The student is saved; free some disk space, then continue with --resume",
        ):
            report, result = write_report(self.directory), read_result(self.directory)
            logger.info("abkd: the student is in %s, the report is %s", self.directory, report)
            for sentence in sentences(result):
                logger.info("abkd: evaluation set: %s", sentence)
            write_checksummed(self.directory / RESULT_FILE, result)


class AlreadyEvaluated(TrainerCallback):
    """Skips the evaluation when a run is resumed after its last step."""

    def __init__(self, record: Record) -> None:
        self.record, self.done = record, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.done = state.global_step >= state.max_steps and self.record.is_evaluated()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_evaluate = control.should_evaluate and not self.done


def _tracked(args: DistillConfig, directory: Path) -> list[str]:
    """The folder of TensorBoard's event files, if it is inside the run's directory."""
    place = Path(str(getattr(args, "logging_dir", None) or os.environ.get("TENSORBOARD_LOGGING_DIR", "")))
    if "tensorboard" not in (args.report_to or []) or not place.is_relative_to(directory):
        return []
    return [place.relative_to(directory).as_posix()]


def recipe_of(run: RunContext) -> str:
    """The recipe of a run started in Python: model names, and the arguments that are not at their default."""
    args, models, train = run.args, run.task.models, run.task.train
    changed = _changed(args)
    teachers = [model_name(model) for model in models.teacher.models] if models.teacher is not None else []
    named = {
        "model_name_or_path": model_name(models.student.model),
        "teacher_model_name_or_path": teachers[0] if len(teachers) == 1 else teachers or None,
        **changed,
        "output_dir": str(args.output_dir),
    }
    rows = 0 if train is None else len(train)
    header = (
        f"# Written by DistillTrainer in Python: the {rows} training rows were passed as objects, so there is no "
        "train_file or the like.\n# A model without a name appears as its class.\n"
    )
    values = yaml.safe_load(strict_json({name: value for name, value in named.items() if value is not None}))
    return header + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _changed(args: DistillConfig) -> dict[str, object]:
    """The arguments that are not at their default."""
    found, plain = args.to_dict(), {}
    for field in dataclasses.fields(args):
        made = field.default_factory() if callable(field.default_factory) else field.default
        plain[field.name] = getattr(made, "value", made)
    kinds = (bool, int, float, str, list, dict)
    return {
        name: value
        for name, value in found.items()
        if name in plain and name not in _NOT_RECORDED and isinstance(value, kinds) and not _same(value, plain[name])
    }


def _same(value: object, plain: object) -> bool:
    return value == plain or value == repr(plain) or (not value and plain in (None, "none", "no"))


def describe(run: RunContext) -> dict[str, object]:
    """Versions, seeds, data, chunk plan and objective of a run."""
    train = run.task.train
    held_out = run.task.held_out
    args, models = run.args, run.task.models
    return {
        "task": args.task,
        "objective": run.loss.objective.spec.formula(run.kind.row_noun),
        "student": model_name(models.student.model),
        "student_parameters": _size(models.student.model),
        "source": notation.render(args.source),
        "teacher": _teacher_name(run),
        "teacher_parameters": sum(map(_size, models.teacher.models if models.teacher is not None else ())) or None,
        "teacher_fingerprint": _fingerprint(run),
        "data_fingerprint": getattr(train, "fingerprint", None),
        "train_rows": _rows_of(train),
        "dropped": getattr(train, "dropped", 0),
        "truncated": getattr(train, "truncated", 0),
        **(run.task.describe() if train is not None else {}),
        "held_out_fingerprint": getattr(held_out, "fingerprint", None),
        "held_out_rows": _rows_of(held_out),
        "seed": args.seed,
        "processes": args.world_size,
        "device": str(args.device),
        "working_directory": os.getcwd(),
        "plan": asdict(run.loss.first_plan),
        "versions": {
            "abkd": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _teacher_name(run: RunContext) -> str:
    """The teacher's models, preceded by the kind of teacher unless it is ``Live()``."""
    kind, reader = notation.render(run.args.teacher), run.task.models.teacher
    names = ", ".join(map(model_name, reader.models)) if reader is not None else ""
    return names if kind == "Live()" else f"{kind} {names}".strip()


def _rows_of(data: ExampleDataset | None) -> int:
    """The number of rows used; several may be packed into one sequence."""
    if isinstance(data, TokenizedDataset) and data.account.rows:
        return data.account.rows - sum(data.account.dropped.values())
    return 0 if data is None else len(data)


def _fingerprint(run: RunContext) -> str | None:
    """Fingerprint of the models given as teachers; None if there are none, as with a cache."""
    spec, reader = run.args.teacher, run.task.models.teacher
    given = () if reader is None or spec.needs[0] == 0 else reader.models
    return weights_fingerprint(given) if given else None


def model_name(model: nn.Module) -> str:
    """The name or path that a model was loaded from, or else its class name."""
    return getattr(model, "name_or_path", "") or type(model).__name__


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
