"""A training of ``benchmarks.against`` that waits for a line on stdin before each step: ``… BENCHMARK PAIR WHO STEPS``.

It runs with the code of either commit, so it uses only names that both have.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from typing import Any

from transformers import TrainerCallback
from transformers import logging as hugging_face

OUT = sys.stdout


BYTES = 1 if sys.platform == "darwin" else 1024
"""The unit of ``ru_maxrss``."""


def reply(seconds: float) -> None:
    """Write the seconds of a step and the highest resident memory so far, for the process that started this one."""
    peak = BYTES * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, peak]), file=OUT, flush=True)


class Turns(TrainerCallback):
    """Waits before each step and replies with its seconds, those for fetching its rows included."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._began = 0.0

    def start(self) -> None:
        """Before the first step."""
        reply(0)
        self._wait()

    def step(self, loss: float | None = None) -> None:
        """After each step."""
        reply(time.perf_counter() - self._began)
        self._wait()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.step()

    def _wait(self) -> None:
        if not sys.stdin.readline():  # the other process has gone
            raise SystemExit
        self._began = time.perf_counter()


def main(benchmark: str, pair: str, contestant: str, steps: int) -> None:
    """Train; the process is killed while it waits after its last step."""
    warnings.simplefilter("ignore")
    logging.getLogger("abkd").setLevel(logging.ERROR)
    hugging_face.set_verbosity_error()
    hugging_face.disable_progress_bar()
    contestants = importlib.import_module(f"benchmarks._{benchmark}_contestants").CONTESTANTS
    models = importlib.import_module(f"benchmarks._{benchmark}_pairs").make_pair(pair, steps)
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(sys.stderr):
        contestants[contestant].run(models, steps, Turns(), output_dir)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
