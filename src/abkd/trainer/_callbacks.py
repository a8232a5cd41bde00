"""Callbacks of a run: metrics file, progress bar, stop signals, epoch of the training order."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd import terminal
from abkd.data.order import TrainOrder
from abkd.errors import Interrupted
from abkd.metrics import HELD_OUT, METRICS
from abkd.storage import atomic_write, disk_errors, strict_json

METRICS_FILE = "metrics.jsonl"
_NOTED = ("loss", *(f"{HELD_OUT}{metric.name}" for metric in METRICS.values() if metric.progress))


class MetricsFile(TrainerCallback):
    """Appends every log record to ``metrics.jsonl``; a resumed run first drops the records it will write again."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        path = Path(str(args.output_dir)) / METRICS_FILE
        if state.is_world_process_zero and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            kept = [line for line in lines if _belongs(line, state.global_step)]
            atomic_write(path, "".join(f"{line}\n" for line in kept).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, float],
        **_: object,
    ) -> None:
        if state.is_world_process_zero:
            record = {"step": state.global_step, **logs}
            path = Path(str(args.output_dir)) / METRICS_FILE
            with (
                disk_errors(str(path), "Free some disk space and continue with --resume"),
                path.open("a", encoding="utf-8") as file,
            ):
                file.write(strict_json(record, indent=None) + "\n")


def evaluated(directory: Path, step: int) -> bool:
    """Whether the metrics file contains an evaluation for ``step``."""
    try:
        lines = (directory / METRICS_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return False
    return any('"eval_' in line and _belongs(line, step) and json.loads(line)["step"] == step for line in lines)


def _belongs(line: str, step: int) -> bool:
    """Whether to keep a record: it is from ``step`` or earlier, and not the summary of an interrupted run."""
    try:
        record = json.loads(line)
        return step > 0 and record["step"] <= step and "train_runtime" not in record
    except (ValueError, TypeError, LookupError):  # truncated when the run was killed, or not our record
        return False


class ProgressBar(TrainerCallback):
    """One line with the steps done, the time left and the latest loss; without a terminal, one line per log.

    Shows nothing if the level of the logger ``abkd`` is above INFO.

    Args:
        one_loss: whether the loss is the same function during the whole run. If not, its evaluation values are not
            comparable, so they are not shown.
    """

    def __init__(self, *, one_loss: bool = True) -> None:
        self.noted = tuple(name for name in _NOTED if one_loss or name != "eval_loss")
        self.console = terminal.console()
        self.bar: Progress | None = None
        self.task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not state.is_world_process_zero or not self.console.is_terminal or args.disable_tqdm or _quiet():
            return
        self.bar = Progress(
            TextColumn("[bold]distilling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self.task = self.bar.add_task("train", total=state.max_steps, completed=state.global_step, note="")
        self.bar.start()
        terminal.take(self.console)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, float],
        **_: object,
    ) -> None:
        note = "  ".join(f"{name} {logs[name]:.4g}" for name in self.noted if name in logs)
        if self.bar is not None and note:
            self.bar.update(self.task, note=note)
        elif note and state.is_world_process_zero and not _quiet():
            self.console.print(f"step {state.global_step}/{state.max_steps}  {note}", highlight=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the terminal, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            terminal.give_back(self.console)
            self.bar = None


def _quiet() -> bool:
    """Whether only warnings are logged."""
    return logging.getLogger("abkd").level > logging.INFO


class StopSignals(TrainerCallback):
    """Ctrl-C and SIGTERM save a checkpoint after the current step and end the run; a second Ctrl-C ends it at once.

    ``received``: the first signal received by any process. ``stopped``: whether it ended the run early.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.stopped = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.received, self.stopped = None, False
        for name in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[name] = signal.signal(name, self._note)
            except ValueError:  # not the main thread: signals cannot be handled there
                return

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.received = _of_any_process(self.received, args)
        if self.received is None or state.global_step >= state.max_steps:
            return
        self.stopped = control.should_training_stop = control.should_log = True
        if not _at_epoch_end(
            state
        ):  # there, on_epoch_end evaluates first and saves after it, as in an uninterrupted run
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self.stopped:
            control.should_save = _at_epoch_end(state)
            control.should_evaluate = control.should_evaluate and _at_epoch_end(state)

    def error(self, step: int, output_dir: object) -> Interrupted:
        """The exception to raise for a run that was stopped early."""
        assert self.received is not None
        error = Interrupted(
            f"stopped by {self.received.name} after step {step}; a checkpoint was saved in {output_dir}: continue with "
            "--resume"
        )
        error.exit_code = 128 + self.received
        return error

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for name, handler in self._before.items():
            signal.signal(name, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # launchers send SIGTERM after a Ctrl-C that their children also received: only a second Ctrl-C ends at once
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)


def _at_epoch_end(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()


def _of_any_process(received: signal.Signals | None, args: TrainingArguments) -> signal.Signals | None:
    """The signal received by any process: all must stop after the same step, or the rest would wait forever."""
    if args.world_size == 1:
        return received
    number = torch.tensor(received or 0, device=args.device)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return signal.Signals(int(number)) if int(number) else None


class EpochOrder(TrainerCallback):
    """Sets the epoch of the training order; wrappers around the data loader do not do so reliably."""

    def __init__(self) -> None:
        self.order: TrainOrder | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.order is not None:
            self.order.begin_epoch(int(state.epoch or 0))
