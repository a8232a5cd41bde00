"""One measurement of ``benchmarks.step`` in a fresh process: ``python -m benchmarks._step_worker '{job}'``."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import psutil

from benchmarks._machine import can_reset_peak, peak_above
from benchmarks._step_contestants import CONTESTANTS, Clock, Contestant
from benchmarks._step_pairs import Pair, make_pair


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job ``{"kind": "time" | "memory", "pair", "steps", "contestants": names, ...}``; returns measurements."""
    quiet()
    chosen = [CONTESTANTS[name] for name in job["contestants"]]
    return (_time if job["kind"] == "time" else _memory)(chosen, job["pair"], job["steps"])


def _time(contestants: list[Contestant], name: str, steps: int) -> dict[str, Any]:
    """Seconds of each step; one contestant after the other, each with its own copy of the student."""
    pair = make_pair(name, steps)
    result: dict[str, Any] = {"tokens": [tokens_of(batch) for batch in pair.batches(steps)], "runs": {}}
    for contestant in contestants:
        own = copy.copy(pair)
        own.student = copy.deepcopy(pair.student)
        clock = _run(contestant, own, steps)
        result["runs"][contestant.name] = {"seconds": clock.seconds, "loss": clock.losses[:1]}
        del own
        gc.collect()
    return result


def _memory(contestants: list[Contestant], name: str, steps: int) -> dict[str, Any]:
    """The memory of one contestant, in bytes."""
    (contestant,) = contestants
    pair = make_pair(name, steps, student=contestant.student, teacher=contestant.teacher)
    return memory_of(pair, lambda: _run(contestant, pair, steps))


def memory_of(pair: Pair, run: Callable[[], Clock]) -> dict[str, Any]:
    """The memory of a training in bytes: resident before it, its peak, and gradients with optimizer state."""
    weights = sum(p.numel() * p.element_size() for p in pair.student.parameters()) if pair.student else 0
    clocks: list[Clock] = []
    can_reset_peak()
    before = psutil.Process().memory_info().rss
    rise, read = peak_above(lambda: clocks.append(run()), "cpu")
    return {
        "before": before,
        "rise": rise,
        "read": read,
        "gradients_and_state": 3 * weights,  # AdamW keeps two moments per weight
        "first_step": clocks[0].seconds[0],
    }


def _run(contestant: Contestant, pair: Pair, steps: int) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(sys.stderr):
        contestant.run(pair, steps, clock, output_dir)
    return clock


def tokens_of(batch: Any) -> dict[str, int]:
    """The number of tokens in the rows of a step."""
    lengths = [len(row["input_ids"]) for row in batch]
    trained = sum(sum(row["trained"]) for row in batch)
    return {"all": sum(lengths), "trained": trained, "padded": max(lengths) * len(lengths)}


def quiet() -> None:
    """Silence warnings, logs and progress bars."""
    logging.getLogger("abkd").setLevel(logging.ERROR)
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
