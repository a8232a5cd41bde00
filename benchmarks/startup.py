"""The time until the first step: ``python -m benchmarks.startup`` (see README.md).

Two measurements in fresh processes: the time that ``import abkd`` adds to ``import torch``, and the time until
``abkd distill`` has done its first step, compared with transformers loading both models and the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import _claims, _machine, _processes, _tables
from benchmarks._claims import Claim
from benchmarks._training import RESULTS

console = Console()

_IMPORT = """
import time, torch
began = time.perf_counter()
import abkd
light = time.perf_counter() - began
abkd.linear_divergence, abkd.AlphaBeta
print(light, time.perf_counter() - began)
"""
_LOAD = """
import sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in sys.argv[1:3]]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(time.time())
"""
WAYS = {
    "abkd distill": [],
    "abkd distill, nothing held out": ["--eval_fraction", "0"],
    "abkd distill, compiler cache empty": ["--eval_fraction", "0"],
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write ``startup.md``."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        student, teacher, data = prepare(Path(folder))
        found = measure(student, teacher, data, Path(folder), options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "startup.md").write_text(report(found), encoding="utf-8")


def prepare(folder: Path) -> tuple[str, str, Path]:
    """Write the demo's student and data to disk; returns the paths of student, teacher and rows."""
    from abkd.demo.teacher import demo_teacher_path
    from benchmarks._step_pairs import demo_rows, make_pair

    pair = make_pair("demo", 1)
    pair.student.save_pretrained(folder / "student")
    pair.tokenizer.save_pretrained(folder / "student")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in demo_rows(320)), encoding="utf-8")
    return str(folder / "student"), demo_teacher_path(), data


def measure(student: str, teacher: str, data: Path, folder: Path, rounds: int) -> dict[str, list[Any]]:
    """The output of every process in every round."""
    found: dict[str, list[Any]] = {}
    calls: dict[str, Callable[[], Any]] = {
        "imports": lambda: [float(part) for part in _processes.run(["-c", _IMPORT]).split()],
        "load": lambda: _load(student, teacher),
    }
    for way, flags in WAYS.items():
        own = ["--model_name_or_path", student, "--teacher_model_name_or_path", teacher, "--train_file", str(data)]
        calls[way] = lambda way=way, flags=[*own, *flags]: _first_step(folder, flags, cold="empty" in way)
    with Progress(console=console) as progress:
        task = progress.add_task("start-up", total=rounds * len(calls))
        for _ in range(rounds):
            for name, call in calls.items():
                found.setdefault(name, []).append(call())
                progress.advance(task)
    return found


def _load(student: str, teacher: str) -> float:
    began = time.time()
    return float(_processes.run(["-c", _LOAD, student, teacher])) - began


def _first_step(folder: Path, flags: Sequence[str], *, cold: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        cache = {"TORCHINDUCTOR_CACHE_DIR": f"{own}/compiled"} if cold else {}
        file = Path(own) / "phases.json"
        run = ["--output_dir", f"{own}/run", "--max_length", "256", "--use_cpu", "true"]
        _processes.run(["-m", "benchmarks._startup_worker", str(time.time()), str(file), *flags, *run], cache)
        return json.loads(file.read_text())


def report(found: dict[str, list[Any]]) -> str:
    """Print the tables; returns them as Markdown."""
    load = median(found["load"])
    light, full = (median(values) for values in zip(*found["imports"], strict=True))
    when = {
        f"{way}: first step {at}": median(each[at] for each in found[way]) for way in WAYS for at in ("begun", "done")
    }
    seconds = {
        "transformers: import, load both models and the tokenizer": load,
        **when,
        "import abkd, after torch": light,
        "its op and divergences, after torch": full,
    }
    # the first step is work that loading does not include: the target is for its start
    claims = [
        Claim("demo", f"{what} / transformers' loading", value / load, 1.5 if what.endswith("begun") else None)
        for what, value in when.items()
    ]
    claims += [Claim("demo", "seconds that import abkd adds to import torch", light, 0.1)]
    parts = [
        (("what", "", "seconds"), [[what, "", f"{value:.3f}"] for what, value in seconds.items()]),
        (_claims.COLUMNS, [each.cells() for each in claims]),
        (("phase", "", *WAYS), phases(found)),
    ]
    facts = _machine.facts(_machine.cores(), "cpu")
    text = ["# Start-up\n", _tables.about(facts, "python -m benchmarks.startup")]
    for columns, lines in parts:
        _tables.show(console, "", columns, lines)
        text.append(_tables.markdown(columns, lines))
    return "\n".join(text)


def phases(found: dict[str, list[Any]]) -> list[list[str]]:
    """The median seconds of each phase, a column for each variant."""
    names = dict.fromkeys(phase for way in WAYS for each in found[way] for phase in each["phases"])
    medians = [[median(each["phases"].get(name, 0.0) for each in found[way]) for way in WAYS] for name in names]
    return [[name, "", *(f"{value:.2f}" for value in row)] for name, row in zip(names, medians, strict=True)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description="Seconds until the first step.")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder of the table")
    return parser


if __name__ == "__main__":
    main()
