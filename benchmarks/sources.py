"""The cost of on-policy text, and of live and cached teachers: ``python -m benchmarks.sources`` (see README.md).

One student learns from labels, from a live teacher, from its caches, and from its own text. Time: rounds, each a
process in which all contestants run in turn, in rotated order. Memory and the short trainings: a process for each
contestant. Finished measurements are kept in ``sources.jsonl``; ``--fresh`` starts over.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import _machine, _processes, _sources_report
from benchmarks._processes import Job
from benchmarks._record import Record
from benchmarks._sources_contestants import CACHES, CONTESTANTS, LIVE, ON_POLICY, REPLAY
from benchmarks._sources_worker import WORKER
from benchmarks._training import RESULTS, rotated

_CODE = (*_machine.LOSS, *(f"src/abkd/{name}" for name in "teachers sources generation trainer data models".split()))
console = Console()


@dataclass(frozen=True)
class Size:
    """The size of the benchmark; ``steps`` per round (the first is not counted) are also the steps of an epoch."""

    steps: int
    written: int
    replayed: int
    epochs: int
    held_out: int


FULL = Size(steps=4, written=3, replayed=6, epochs=10, held_out=24)
QUICK = Size(steps=3, written=2, replayed=4, epochs=2, held_out=8)


def main(arguments: list[str] | None = None) -> None:
    """Run the missing measurements, then print and write the tables."""
    options = _parser().parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    wanted = list(jobs(options.pair, rounds, QUICK if options.quick else FULL))
    facts = _machine.facts(_machine.cores(), "cpu")
    record = Record(options.out / "sources.jsonl", facts, _CODE, fresh=options.fresh)
    record.complete(wanted, measure, console)
    done = record.lines(wanted)
    _sources_report.write(done, options.out, console)
    record.warn(done, console)


def jobs(pair: str, rounds: int, size: Size) -> Iterator[Job]:
    """All measurements."""
    names = list(CONTESTANTS)
    for number in range(rounds):
        order = rotated(names, number)
        yield {"kind": "time", "pair": pair, "steps": size.steps, "contestants": order, "round": number}
        steps = {ON_POLICY: size.written, REPLAY: size.replayed}
        order = [ON_POLICY, REPLAY][:: 1 - 2 * (number % 2)]
        yield {"kind": "write", "pair": pair, "steps": steps, "contestants": order, "round": number}
    yield {"kind": "generate", "pair": pair, "rounds": rounds}
    for name in names:
        yield {"kind": "memory", "pair": pair, "steps": 3, "contestant": name}
    for name in (LIVE, *CACHES):
        size_of_run = {"steps": size.steps, "epochs": size.epochs, "held_out": size.held_out}
        yield {"kind": "train", "pair": pair, "contestant": name, **size_of_run}


def measure(job: Job) -> dict[str, Any]:
    """The result of a job, from a fresh process."""
    return _processes.measure(job, WORKER)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sources", description="The cost of on-policy text, and of live and cached teachers."
    )
    parser.add_argument("--pair", choices=("demo", "tiny"), default="demo", help="models to measure")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round, short runs")
    parser.add_argument("--fresh", action="store_true", help="discard previous measurements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    return parser


if __name__ == "__main__":
    main()
