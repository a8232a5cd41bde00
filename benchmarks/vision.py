"""The cost of one training step of a classifier: ``python -m benchmarks.vision`` (see README.md).

Each contestant trains the same student on the same images in the same order, measured as in ``benchmarks.step``;
finished measurements are kept in ``vision.jsonl``.
"""

from __future__ import annotations

from rich.console import Console

from benchmarks._machine import LOSS
from benchmarks._training import Benchmark
from benchmarks._vision_contestants import CONTESTANTS
from benchmarks._vision_pairs import PAIRS
from benchmarks._vision_report import REPORT

BENCHMARK = Benchmark(
    name="vision",
    about="The cost of one training step of a classifier.",
    contestants=CONTESTANTS,
    pairs=PAIRS,
    default=("resnet", "digits"),
    steps=9,
    code=(*LOSS, "src/abkd/trainer", "src/abkd/data/images", "src/abkd/models/vision"),
    report=REPORT,
)


def main(words: list[str] | None = None) -> None:
    """Run the missing measurements, then print and write the tables."""
    BENCHMARK.main(words, Console())


if __name__ == "__main__":
    main()
