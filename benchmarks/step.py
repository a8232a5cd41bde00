"""The cost of one training step: ``python -m benchmarks.step`` (see README.md).

Each contestant trains the same student on the same rows in the same order. Time: rounds, each a process in which all
contestants run in turn, in rotated order. Memory and the first step: a process for each contestant. Finished
measurements are kept in ``step.jsonl`` and not repeated; ``--fresh`` starts over.
"""

from __future__ import annotations

from rich.console import Console

from benchmarks._machine import LOSS
from benchmarks._step_contestants import CONTESTANTS
from benchmarks._step_pairs import PAIRS
from benchmarks._step_report import REPORT
from benchmarks._training import Benchmark

BENCHMARK = Benchmark(
    name="step",
    about="The cost of one training step.",
    contestants=CONTESTANTS,
    pairs=PAIRS,
    default=("demo", "qwen"),
    steps=4,
    code=(*LOSS, "src/abkd/trainer"),
    report=REPORT,
)


def main(words: list[str] | None = None) -> None:
    """Run the missing measurements, then print and write the tables and the figures."""
    BENCHMARK.main(words, Console())


if __name__ == "__main__":
    main()
