"""One measurement of ``benchmarks.sources`` in a fresh process: ``python -m benchmarks._sources_worker '{job}'``."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from abkd import DistillConfig, DistillTrainer, ForwardKL
from abkd.data import Collator, Example, TokenizedDataset, prepare_dataset, prompt_of
from abkd.demo.text import build_rows
from abkd.generation import Sampling, write_completions
from abkd.models.shrink import layer_influence, shrink
from benchmarks import _processes
from benchmarks._sources_contestants import (
    CACHES,
    CONTESTANTS,
    WRITTEN,
    WRITTEN_TOKENS,
    Contestant,
    LoggingClock,
    Place,
)
from benchmarks._step_pairs import Pair, make_pair
from benchmarks._training import Clock, arguments
from benchmarks._training_worker import memory_of, own_student, quiet

WORKER = "benchmarks._sources_worker"
_LEARNING_RATE = 2e-4  # the demo's


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job ``{"kind", "pair", "steps", ...}`` and return its measurements; the kinds are the functions below."""
    quiet()
    kinds = {"time": time_all, "build": build, "memory": memory, "write": write, "generate": generate, "train": train}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        return kinds[job["kind"]](job, Path(folder))


def time_all(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds to build each cache, then seconds of each step of each contestant, on the same rows in the same order."""
    pair, place = make_pair(job["pair"], job["steps"]), Place(job["pair"], folder)
    _warm_up(pair)
    names = [name for name in job["contestants"] if name in CACHES]
    built = {name: place.build(name, pair) for name in names}
    runs: dict[str, Any] = {}
    for name in job["contestants"]:
        with own_student(pair) as own:
            clock = _run(CONTESTANTS[name], own, place, job["steps"], Clock())
        runs[name] = {"seconds": clock.seconds, "loss": clock.losses[:1]}
    return {"counts": pair.counts(job["steps"]), "built": built, "runs": runs}


def build(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build a cache in ``job["folder"]``, for a process that must not have loaded the teacher."""
    pair = make_pair(job["pair"], job["steps"])
    return Place(job["pair"], Path(job["folder"])).build(job["contestant"], pair)


def memory(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The memory of one contestant."""
    contestant, place = CONTESTANTS[job["contestant"]], Place(job["pair"], folder)
    if contestant.cache is not None:
        _processes.measure({**job, "kind": "build", "folder": str(folder)}, WORKER)
    pair = make_pair(job["pair"], job["steps"], teacher=contestant.live)
    return memory_of(pair, lambda: _run(contestant, pair, place, job["steps"], Clock()))


def write(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The steps of contestants whose student generates: seconds and logs of each."""
    pair, place = make_pair(job["pair"], max(job["steps"].values())), Place(job["pair"], folder)
    runs: dict[str, Any] = {}
    for name in job["contestants"]:
        clock = LoggingClock()
        with own_student(pair) as own:
            _run(WRITTEN[name], own, place, job["steps"][name], clock, seed=job["round"], data_seed=0)
        runs[name] = {"seconds": clock.seconds, "logs": clock.logs}
    prompts = [[len(prompt_of(row)) for row in batch] for batch in pair.batches(max(job["steps"].values()))]
    return {"rows": pair.batch_size, "prompt_tokens": [sum(batch) for batch in prompts], "runs": runs}


def generate(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds and tokens of the same prompts completed in one batch and one by one."""
    pair = make_pair(job["pair"], 1, teacher=False)
    prompts = [prompt_of(row) for row in pair.examples]
    ways = {"all at once": len(prompts), "one by one": 1}

    def answered(batch_size: int, seed: int, most: int) -> dict[str, float]:
        began = time.perf_counter()
        written = write_completions(
            pair.student,
            pair.tokenizer,
            prompts,
            Sampling(),
            max_new_tokens=most,
            seed=seed,
            batch_size=batch_size,
        )
        return {"seconds": time.perf_counter() - began, "tokens": sum(len(each.ids) for each in written)}

    for batch_size in ways.values():
        answered(batch_size, 0, 1)
    rounds = range(job["rounds"])
    return {"runs": [{way: answered(size, seed, WRITTEN_TOKENS) for way, size in ways.items()} for seed in rounds]}


def train(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A real training from the same start: the time of its cache and its training, and its final distances."""
    pair, place = make_pair(job["pair"], job["steps"], student=False), Place(job["pair"], folder)
    pair.student = _like_the_demo(pair)
    contestant, steps = CONTESTANTS[job["contestant"]], job["steps"] * job["epochs"]
    judge = _Judge(pair, _held_out(job["pair"], job["held_out"]), folder)
    before = judge.held_out()
    built = place.build(contestant.name, pair)["seconds"] if contestant.cache is not None else 0.0
    settings: dict[str, Any] = {"learning_rate": _LEARNING_RATE, "lr_scheduler_type": "cosine"}
    began = time.perf_counter()
    contestant.trainer(pair, place, str(folder), steps, Clock(), DistillTrainer, **settings).train()
    seconds = time.perf_counter() - began
    return {"build_s": built, "train_s": seconds, "before": before, "after": judge.held_out()}


def _like_the_demo(pair: Pair) -> Any:
    """The more influential half of the teacher's layers, a better initialisation than every second layer."""
    influence = layer_influence(pair.teacher, [row["input_ids"] for row in pair.examples])
    student, _ = shrink(pair.teacher, len(influence) // 2, influence)
    return student


class _Judge:
    """Evaluation against the live teacher on held-out rows."""

    def __init__(self, pair: Pair, rows: Sequence[Example], folder: Path) -> None:
        config = DistillConfig(**arguments(1, str(folder), pair.batch_size), divergence=ForwardKL())
        data = TokenizedDataset(rows, name="eval")
        self._trainer = DistillTrainer(
            pair.student, pair.teacher, config, eval_dataset=data, processing_class=pair.tokenizer
        )

    def held_out(self) -> dict[str, float]:
        """Distances and perplexities of the current student."""
        return {name.removeprefix("eval_"): value for name, value in self._trainer.evaluate().items()}


def _held_out(name: str, count: int) -> list[Example]:
    """Rows other than those that ``make_pair`` gives for the few steps of this benchmark."""
    if name != "demo":
        return list(make_pair(name, 32).examples)[-count:]
    _, rows = build_rows()
    random.Random(0).shuffle(rows)
    tokenizer = make_pair(name, 1, student=False, teacher=False).tokenizer
    return list(prepare_dataset(rows[:count], tokenizer, max_length=256, name="eval"))


def _run(contestant: Contestant, pair: Pair, place: Place, steps: int, clock: Clock, **options: Any) -> Clock:
    with tempfile.TemporaryDirectory() as output_dir:
        contestant.run(pair, place, steps, clock, output_dir, **options)
    return clock


@torch.no_grad()
def _warm_up(pair: Pair) -> None:
    """Run a forward: the first one of a process takes longer, and is not to be measured."""
    rows = Collator(0)(pair.batches(1)[0])["batch"].student
    pair.teacher.eval()(**rows.inputs, use_cache=False)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
