"""The cost of one training step of a classifier: ``python -m benchmarks.vision`` (see README.md).

Each contestant trains the same student on the same images in the same order. Time: rounds, each a process in which all
contestants run in turn, in rotated order. Memory: a process for each contestant. Finished measurements are kept in
``vision.jsonl`` and not repeated; ``--fresh`` starts over.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import _jobs, _machine, _vision_report
from benchmarks._jobs import Job
from benchmarks._vision_contestants import CONTESTANTS
from benchmarks._vision_pairs import PAIRS

RESULTS = Path(__file__).parent / "results"
_MEASURED = (
    "src/abkd/ops",
    "src/abkd/divergences",
    "src/abkd/trainer",
    "src/abkd/data/images",
    "src/abkd/models/vision",
)

console = Console()


def main(arguments: list[str] | None = None) -> None:
    """Run the missing measurements, then print and write the tables."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "vision.jsonl"
    if options.fresh:
        record.unlink(missing_ok=True)
    absent = {name: why for name, each in CONTESTANTS.items() if (why := each.absent())}
    for name, why in absent.items():
        console.print(f"{name}: not run, {why}", highlight=False)
    names = [name for name in CONTESTANTS if name not in absent]
    wanted = [job for pair in options.pairs for job in jobs(pair, names, options.rounds, options.steps)]
    facts, code = _machine.facts(_machine.cores(), "cpu"), _machine.code_digest(_MEASURED)
    known = _jobs.read(record, facts)
    missing = [job for job in wanted if _jobs.key(job) not in known][: options.at_most]
    for job in track(missing, f"{len(missing)} of {len(wanted)} measurements", console=console):
        _jobs.write(record, {"job": job, "facts": facts, "code": code, "result": measure(job)})
    done = _jobs.done(_jobs.read(record, facts), wanted)
    _vision_report.write(done, options.out, absent, console)
    others = sum(line.get("code") != code for line in done)
    if others:
        console.print(f"{others} of these measurements were made with another version of the code; use --fresh")


def jobs(pair: str, names: list[str], rounds: int, steps: int) -> Iterator[Job]:
    """All measurements of a pair."""
    for number in range(rounds):
        start = 2 * number % len(names)
        order = [*names[start:], *names[:start]]
        yield {"kind": "time", "pair": pair, "steps": steps, "contestants": order, "round": number}
    for name in names:
        yield {"kind": "memory", "pair": pair, "steps": 3, "contestants": [name]}


def measure(job: Job) -> dict[str, Any]:
    """The result of a job, from a fresh process."""
    return _jobs.measure(job, "benchmarks._vision_worker")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision", description="A classifier's training step.")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["resnet", "digits"], help="models to measure")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--steps", type=int, default=9, help="steps per round; the first is not counted")
    parser.add_argument("--at-most", type=int, default=None, help="stop after this many measurements; resume later")
    parser.add_argument("--fresh", action="store_true", help="discard previous measurements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    return parser


if __name__ == "__main__":
    main()
