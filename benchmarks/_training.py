"""The benchmarks of a training step: contestants that train the same student on the same batches, and their jobs."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback

from abkd import DistillTrainer
from benchmarks import _machine, _processes, _training_report
from benchmarks._processes import Job
from benchmarks._record import Record
from benchmarks._training_report import Report

RESULTS = Path(__file__).parent / "results"
WORKER = "benchmarks._training_worker"
SLOW_ROUNDS = 3


class Clock(TrainerCallback):
    """Records when each step ended. A step lasts from the end of the previous one, so it includes loading its rows."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def start(self) -> None:
        """Start of the first step."""
        self.ends.append(time.perf_counter())

    def step(self, loss: float | None = None) -> None:
        """End of a step."""
        self.ends.append(time.perf_counter())
        if loss is not None:
            self.losses.append(loss)

    @property
    def seconds(self) -> list[float]:
        """The duration of each step."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.step()

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


@dataclass(frozen=True)
class Contestant:
    """``run(pair, steps, clock, output_dir)`` trains ``pair.student``; ``package`` is the module that it needs."""

    name: str
    run: Callable[[Any, int, Clock, str], None]
    student: bool = True
    teacher: bool = True
    package: str | None = None
    slow: bool = False
    """Far slower than the others: fewer rounds are enough."""
    same_loss: str | None = None
    """Contestants with the same value must have the same loss in the first step."""

    def absent(self) -> str | None:
        """Why it cannot run, if so."""
        if self.package is None:
            return None
        root = self.package.partition(".")[0]
        if importlib.util.find_spec(root) is None:
            return f"{root} is not installed"
        try:
            importlib.import_module(self.package)
        except Exception as error:  # noqa: BLE001 - any error on import means that it is absent
            return f"{self.package} cannot be imported ({type(error).__name__}: {str(error).splitlines()[0]})"
        return None


def arguments(steps: int, output_dir: str, batch_size: int, **own: Any) -> dict[str, Any]:
    """The training arguments of all trainers: float32, nothing saved, nothing reported."""
    return {
        "output_dir": output_dir,
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": batch_size,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_first_step": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        **own,
    }


class InOrder(Trainer):
    """A Trainer that does not shuffle, so that every contestant has the same batches."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]


class Ours(DistillTrainer, InOrder):
    """Our trainer without shuffling."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return InOrder._get_train_sampler(self, train_dataset)


@dataclass(frozen=True)
class Benchmark:
    """``python -m benchmarks.NAME``; ``_NAME_contestants`` and ``_NAME_pairs`` have what is measured."""

    name: str
    about: str
    contestants: Mapping[str, Contestant]
    pairs: Collection[str]
    default: Sequence[str]
    steps: int
    code: Sequence[str]
    report: Report

    def main(self, words: Sequence[str] | None, console: Console) -> None:
        """Run the missing measurements, then print and write the tables."""
        options = self._parser().parse_args(words)
        absent = {name: why for name, each in self.contestants.items() if (why := each.absent())}
        for name, why in absent.items():
            console.print(f"{name}: not run, {why}", highlight=False)
        names = [name for name in self.contestants if name not in absent]
        wanted = [job for pair in options.pairs for job in self.jobs(pair, names, options.rounds, options.steps)]
        facts = _machine.facts(_machine.cores(), "cpu")
        record = Record(options.out / f"{self.name}.jsonl", facts, self.code, fresh=options.fresh)
        record.complete(wanted, measure, console, at_most=options.at_most)
        done = record.lines(wanted)
        _training_report.write(self.report, self.name, done, options.out, absent, console)
        record.warn(done, console)

    def jobs(self, pair: str, names: Sequence[str], rounds: int, steps: int) -> Iterator[Job]:
        """All measurements of a pair; slow contestants are left out of the later rounds."""
        same = {"benchmark": self.name, "pair": pair}
        for number in range(rounds):
            now = [name for name in names if number < SLOW_ROUNDS or not self.contestants[name].slow]
            yield {**same, "kind": "time", "steps": steps, "contestants": rotated(now, number), "round": number}
        for name in names:
            yield {**same, "kind": "memory", "steps": 3, "contestants": [name]}

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.about)
        parser.add_argument("--pairs", nargs="+", choices=self.pairs, default=self.default, help="models to measure")
        parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
        parser.add_argument("--steps", type=int, default=self.steps, help="steps per round; the first is not counted")
        parser.add_argument("--at-most", type=int, default=None, help="stop after this many measurements; resume later")
        parser.add_argument("--fresh", action="store_true", help="discard previous measurements")
        parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
        return parser


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each begins with another contestant."""
    start = 2 * number % len(names)
    return [*names[start:], *names[:start]]


def measure(job: Job) -> Any:
    """The result of a job, from a fresh process."""
    return _processes.measure(job, WORKER)
