"""Time, peak memory and correctness of the loss against other libraries: ``python -m benchmarks.loss [--full]``."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.console import Console

from benchmarks._cases import EAGER, FLOOR, OURS, PAPER, TEXTBOOK, TRL, Case, Job, full_jobs, ligers, quick_jobs
from benchmarks._cases import refusal as refusal_of
from benchmarks._loss_record import LossRecord
from benchmarks._machine import ROOT, cores
from benchmarks._outcomes import Outcome, outcomes
from benchmarks._pictures import bar_figure, curve_figure, save
from benchmarks._processes import Failed
from benchmarks._tables import show_loss, write_loss
from benchmarks._targets import targets

TINY = Case(rows=48, classes=512, student=16, teacher=24)


def options(description: str | None) -> argparse.ArgumentParser:
    """The argument parser of the scripts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--full", action="store_true", help="all cases; takes hours instead of minutes")
    parser.add_argument("--tiny", action="store_true", help="a smoke test on a few kilobytes, without valid timings")
    parser.add_argument("--fresh", action="store_true", help="discard previous measurements")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="output folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after the first call")
    parser.add_argument("--threads", type=int, default=cores(), help="threads of the matrix products")
    return parser


def command(script: str, chosen: argparse.Namespace) -> str:
    """The command that repeats this measurement, without the output folder."""
    words = [f"python -m benchmarks.{script}", *(f"--{name}" for name in ("full", "tiny") if getattr(chosen, name))]
    words += [f"--only {shlex.quote(chosen.only)}"] if chosen.only else []
    return " ".join([*words, f"--device {chosen.device} --rounds {chosen.rounds} --threads {chosen.threads}"])


def tiny_jobs(base: Case) -> list[Job]:
    """One case with all contestants, and one with half of the rows, hard labels and memory."""
    everyone = (FLOOR, OURS, EAGER, TEXTBOOK, TRL, *ligers(16, compiled=(False,)))
    other = replace(base, divergence=PAPER, weighted=0.5, ce_weight=1.0)
    return [Job(base, everyone, memory=False), Job(other, (FLOOR, OURS, TEXTBOOK))]


def measure(job: Job, record: LossRecord, rounds: int, console: Console) -> list[Outcome]:
    """Measure one case: the times of all contestants in one process, then the memory of each in its own process."""
    case, rows = job.case, []
    able = []
    for one in job.contestants:
        why = refusal_of(one, case)
        if why is None:
            able.append(one)
        elif why.endswith("installed"):
            rows.append(Outcome(case, one, note=why))
    console.print(f"{case.name}: {len(able)} contestants", highlight=False)
    timed = record.timing(case, able, rounds)
    fits = {entry["contestant"] for entry in timed if "skipped" not in entry}
    memory = {}
    for one in able:
        if job.memory and one != FLOOR and one.name in fits:
            memory[one.name] = record.memory(case, one)
    return outcomes(case, able, timed, memory) + rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing measurements, then print and write the tables and figures."""
    parser = options(__doc__)
    chosen = parser.parse_args(arguments)
    console = Console()
    record = LossRecord(chosen.out, "loss", threads=chosen.threads, device=chosen.device, fresh=chosen.fresh)
    base = replace(TINY if chosen.tiny else Case(), device=chosen.device)
    jobs = tiny_jobs(base) if chosen.tiny else full_jobs(base) if chosen.full else quick_jobs(base)
    jobs = [job for job in jobs if chosen.only in job.case.name]
    rows: list[Outcome] = []
    failed = 0
    for job in jobs:
        try:
            rows += measure(job, record, chosen.rounds, console)
        except Failed as error:
            failed += 1
            console.print(f"[red]{job.case.name}[/]: the measurement failed: {error}", highlight=False)
    goals = targets(rows)
    show_loss(console, rows, goals)
    write_loss(chosen.out, record.facts, command("loss", chosen), rows, goals)
    (chosen.out / "loss.json").write_text(
        json.dumps({"facts": record.facts, "rows": [_json(row) for row in rows]}, indent=1)
    )
    draw(rows, chosen.out)
    record.warn(console)
    console.print(f"written to {chosen.out}", highlight=False)
    return 1 if failed else 0


def draw(rows: list[Outcome], folder: Path) -> None:
    """Draw a curve for each case with several memory budgets (else for the first with memory), and one bar chart."""
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.case)]
    weighed = [group for group in groups if any(row.peak_mb for row in group)]
    several = [group for group in weighed if sum(row.contestant.kind == "abkd" for row in group) > 2]
    for group in several or weighed[:1]:
        save(curve_figure(group), folder, f"curve-{group[0].case.slug}")
    if groups:
        save(bar_figure(groups[0]), folder, "bars")


def _json(row: Outcome) -> dict[str, object]:
    return {
        "case": row.case.name,
        "contestant": row.contestant.name,
        "seconds": row.seconds,
        "times_floor": row.times_floor,
        "first_s": row.first_s,
        "peak_bytes": row.peak_bytes,
        "read_from": row.read_from,
        "errors": row.errors,
        "note": row.note,
    }


if __name__ == "__main__":
    raise SystemExit(main())
