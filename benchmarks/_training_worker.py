"""One measurement of a training step in a fresh process: ``python -m benchmarks._training_worker '{job}'``."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import psutil
from torch import nn

from benchmarks._machine import can_reset_peak, peak_above
from benchmarks._training import Clock, Contestant

P = TypeVar("P", bound="Pair")


class Pair(Protocol):
    """Two models, and the batches of each step."""

    student: Any
    teacher: Any

    state_per_weight: ClassVar[int]
    """How many numbers the gradient and the optimizer's state keep for each weight of the student."""

    def counts(self, steps: int) -> list[dict[str, int]]:
        """For each step, how much its batch has of each unit, such as ``{"images": 64}``."""
        ...


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job ``{"kind": "time" | "memory", "benchmark", "pair", "steps", "contestants"}``; returns measurements."""
    quiet()
    known: dict[str, Contestant] = importlib.import_module(f"benchmarks._{job['benchmark']}_contestants").CONTESTANTS
    make_pair = importlib.import_module(f"benchmarks._{job['benchmark']}_pairs").make_pair
    chosen, steps = [known[name] for name in job["contestants"]], job["steps"]
    if job["kind"] == "time":
        return _time(chosen, make_pair(job["pair"], steps), steps)
    (one,) = chosen
    pair = make_pair(job["pair"], steps, student=one.student, teacher=one.teacher)
    return memory_of(pair, lambda: _run(one, pair, steps))


def _time(contestants: Sequence[Contestant], pair: Pair, steps: int) -> dict[str, Any]:
    """Seconds of each step; one contestant after the other, each with its own copy of the student."""
    runs: dict[str, Any] = {}
    for contestant in contestants:
        with own_student(pair) as own:
            clock = _run(contestant, own, steps)
        runs[contestant.name] = {"seconds": clock.seconds, "loss": clock.losses[:1]}
    return {"counts": pair.counts(steps), "runs": runs}


@contextlib.contextmanager
def own_student(pair: P) -> Iterator[P]:
    """The pair with a copy of its student, which is freed at the end."""
    own = copy.copy(pair)
    own.student = copy.deepcopy(pair.student)
    yield own
    own.student = None
    gc.collect()


def memory_of(pair: Pair, run: Callable[[], Clock]) -> dict[str, Any]:
    """The memory of a training in bytes: resident before it, its peak, and gradients with optimizer state."""
    student: nn.Module | None = pair.student
    weights = sum(p.numel() * p.element_size() for p in student.parameters()) if student is not None else 0
    clocks: list[Clock] = []
    can_reset_peak()
    before = psutil.Process().memory_info().rss
    rise, read = peak_above(lambda: clocks.append(run()), "cpu")
    return {
        "before": before,
        "rise": rise,
        "read": read,
        "gradients_and_state": pair.state_per_weight * weights,
        "first_step": clocks[0].seconds[0],
    }


def _run(contestant: Contestant, pair: Pair, steps: int) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(sys.stderr):
        contestant.run(pair, steps, clock, output_dir)
    return clock


def quiet() -> None:
    """Silence warnings, logs and progress bars."""
    logging.getLogger("abkd").setLevel(logging.ERROR)
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
