"""One measurement of ``benchmarks.vision`` in a fresh process: ``python -m benchmarks._vision_worker '{job}'``."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import sys
import tempfile
from typing import Any

import psutil

from benchmarks._machine import can_reset_peak, peak_above
from benchmarks._step_contestants import Clock
from benchmarks._step_worker import quiet
from benchmarks._vision_contestants import CONTESTANTS, Contestant
from benchmarks._vision_pairs import Pair, make_pair


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job ``{"kind": "time" | "memory", "pair", "steps", "contestants": names, ...}``; returns measurements."""
    quiet()
    chosen = [CONTESTANTS[name] for name in job["contestants"]]
    return (_time if job["kind"] == "time" else _memory)(chosen, job["pair"], job["steps"])


def _time(contestants: list[Contestant], name: str, steps: int) -> dict[str, Any]:
    """Seconds of each step; one contestant after the other, each with its own copy of the student."""
    pair = make_pair(name, steps)
    runs: dict[str, Any] = {}
    for contestant in contestants:
        own = copy.copy(pair)
        own.student = copy.deepcopy(pair.student)
        clock = _run(contestant, own, steps)
        runs[contestant.name] = {"seconds": clock.seconds, "loss": clock.losses[:1]}
        del own
        gc.collect()
    return {"images": pair.batch_size, "runs": runs}


def _memory(contestants: list[Contestant], name: str, steps: int) -> dict[str, Any]:
    """The memory of one contestant in bytes: resident before it, its peak, and gradients with momentum."""
    (contestant,) = contestants
    pair = make_pair(name, steps, student=contestant.student, teacher=contestant.teacher)
    weights = sum(p.numel() * p.element_size() for p in pair.student.parameters()) if pair.student else 0
    can_reset_peak()
    before = psutil.Process().memory_info().rss
    rise, read = peak_above(lambda: _run(contestant, pair, steps), "cpu")
    return {"before": before, "rise": rise, "read": read, "gradients_and_state": 2 * weights}


def _run(contestant: Contestant, pair: Pair, steps: int) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(sys.stderr):
        contestant.run(pair, steps, clock, output_dir)
    return clock


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
