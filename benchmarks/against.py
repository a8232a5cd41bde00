"""Before and after a change, step by step: ``python -m benchmarks.against BASE`` (see README.md).

Two processes train the same student on the same rows, one with the code of each commit, and take turns at every step.
Two processes of the same code differ by a few per cent for as long as they live, so there are several rounds of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import _machine, _tables
from benchmarks._training import RESULTS

WARM_UP = 2
COLUMNS = ("run", "ms before", "after", "ratio", "95 %", "pairs", "MB before", "after")
RUNS = {
    "step demo, forward KL": ("step", "demo", "abkd forward KL"),
    "step demo, α-β": ("step", "demo", "abkd α-β"),
    "step qwen, α-β": ("step", "qwen", "abkd α-β"),
    "step tiny, α-β": ("step", "tiny", "abkd α-β"),
    "vision resnet, ABKD": ("vision", "resnet", "abkd ABKD"),
    "vision digits, ABKD": ("vision", "digits", "abkd ABKD"),
    "vision tiny, ABKD": ("vision", "tiny", "abkd ABKD"),
}
"""Benchmark, pair of models and contestant; both commits must have them."""
DEFAULT = [name for name in RUNS if "tiny" not in name]

console = Console()


class Round(NamedTuple):
    """Milliseconds of each step before and after, and the peak of each process's resident memory in MB."""

    before: list[float]
    after: list[float]
    peak: tuple[float, float]


def main(arguments: list[str] | None = None) -> None:
    """Measure each run, then print and write the table."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Round]] = {}
    with tempfile.TemporaryDirectory() as folder, checkout(options.base, Path(folder)) as base:
        for name in options.runs:
            rounds = track(range(options.rounds), name, console=console)
            found[name] = [measure(name, base, options.steps + WARM_UP) for _ in rounds]
    cells = [line(name, each) for name, each in found.items()]
    _tables.show(console, f"{options.base} → this checkout", COLUMNS, cells)
    about = _tables.about(_machine.facts(_machine.cores(), "cpu"), f"python -m benchmarks.against {options.base}")
    text = "\n".join(["# Before and after\n", about, _tables.markdown(COLUMNS, cells)])
    (options.out / "against.md").write_text(text, encoding="utf-8")


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """A git worktree of a commit."""
    place = folder / "base"
    git = ["git", "-C", str(_machine.ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def measure(name: str, base: Path, steps: int) -> Round:
    """Train in two new processes that take turns; who goes first alternates. The first steps warm up."""
    with ExitStack() as stack:
        sides = [stack.enter_context(_Side(root, name, steps)) for root in (base, _machine.ROOT)]
        for side in sides:
            side.reply()  # ready: models loaded
        seconds: list[list[float]] = [[], []]
        for step in range(steps):
            for which in (0, 1) if step % 2 else (1, 0):
                seconds[which].append(sides[which].step())
        before, after = ([1e3 * each for each in side[WARM_UP:]] for side in seconds)
        return Round(before, after, (sides[0].peak_mb, sides[1].peak_mb))


class _Side:
    """A process that trains with the code of a checkout, one step for each line that it is sent."""

    def __init__(self, root: Path, name: str, steps: int) -> None:
        environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "HF_HUB_OFFLINE": "1"}
        worker = Path(__file__).with_name("_against_worker.py")
        command = [sys.executable, "-P", str(worker), *RUNS[name], str(steps)]
        self.peak_mb = 0.0
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=environment | {"TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def step(self) -> float:
        """Seconds of the next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.reply()

    def reply(self) -> float:
        """The seconds that the process replies; also notes the memory.

        Raises:
            RuntimeError: the process failed; the message has the end of its stderr.
        """
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            self._log.seek(0)
            raise RuntimeError(f"a training process failed:\n{self._log.read()[-3000:]}")
        seconds, peak = json.loads(text)
        self.peak_mb = peak / 2**20
        return seconds


def line(name: str, rounds: Sequence[Round]) -> list[str]:
    """A line of the table; the ratio is the mean over the rounds of the median of the quotients of the same step."""
    quotients = np.array([np.divide(each.after, each.before) for each in rounds])
    low, high = interval(quotients)
    times = (f"{median(step for each in rounds for step in each[side]):,.1f}" for side in (0, 1))
    peaks = (f"{median(each.peak[side] for each in rounds):,.0f}" for side in (0, 1))
    ratio = np.median(quotients, axis=1).mean()
    return [name, *times, f"{ratio:.3f}", f"{low:.3f}–{high:.3f}", str(quotients.size), *peaks]


def interval(quotients: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the ratio, by the bootstrap: rounds are drawn, and steps within each."""
    draw = np.random.default_rng(0)
    rounds, steps = quotients.shape
    ratios = []
    for _ in range(4000):
        which = draw.integers(rounds, size=(rounds, 1))
        ratios.append(np.median(quotients[which, draw.integers(steps, size=(rounds, steps))], axis=1).mean())
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description="Two commits, step by step.")
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=DEFAULT, help="what is trained")
    parser.add_argument("--rounds", type=int, default=6, help="new pairs of processes")
    parser.add_argument("--steps", type=int, default=4, help="timed pairs of steps in each round")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder of the table")
    return parser


if __name__ == "__main__":
    main()
