"""The figures of docs/trust.md that are measured and not asserted: ``python -m benchmarks.trust [T13 T15 T20]``.

Other libraries are included if they are installed: ``pip install 'abkd[bench]'``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._cases import FORWARD, JENSEN, OURS, PAPER, TRL, Case, Contestant, contestant_from, refusal, to_json

LIGER = Contestant("liger", (128,), compiled=False)
LARGE = Case(rows=1024, classes=151_936, student=256, teacher=512)
PARTS = ("T13", "T15", "T20")
THREADS = 2


def mixed_dtypes() -> None:
    """T13: the lowest divergence between equal logits, the student's in bfloat16, the teacher's in float32."""
    torch.manual_seed(0)
    student = 3.0 * torch.randn(8, 50_000).bfloat16()
    for name, measure in distances().items():
        lowest = min(measure(student, student.float()), measure(student.float(), student))
        print(f"T13  {name:32} {lowest:+.2e}")


def distances() -> dict[str, Callable[[Tensor, Tensor], float]]:
    """Losses on dense logits ``[N, V]``, student first."""
    import abkd

    def ours(divergence: Any) -> Callable[[Tensor, Tensor], float]:
        return lambda q, p: abkd.divergence_loss(q, p, divergence, reduction="none").min().item()

    found = {
        f"abkd {each!r}": ours(each) for each in (abkd.ForwardKL(), abkd.JensenShannon(), abkd.AlphaBeta(0.2, 0.7))
    }
    if importlib.util.find_spec("trl") is not None:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        gkd: Any = importlib.import_module("trl.experimental.gkd").GKDTrainer
        for name, beta in (("forward KL", 0.0), ("JSD", 0.5)):
            found[f"TRL GKD {name}"] = lambda q, p, beta=beta: float(gkd.generalized_jsd_loss(q, p, beta=beta))
    return found


def large_vocabulary() -> None:
    """T15: seconds and peak memory of forward and backward, each in a fresh process; two threads, float32, CPU."""
    for one in (OURS, TRL, LIGER):
        for divergence in (JENSEN, FORWARD, PAPER):
            case = replace(LARGE, divergence=divergence)
            why = refusal(one, case)
            if why is not None:
                print(f"T15  {divergence:20} {one.name:24} {why}")
                continue
            job = json.dumps({"case": to_json(case), "contestant": to_json(one)})
            done = subprocess.run([sys.executable, "-m", "benchmarks.trust", "--measure", job], capture_output=True)
            found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-300:]}
            print(f"T15  {divergence:20} {one.name:24} {found}", flush=True)


def measure(job: str) -> None:
    """One call: wall-clock and CPU seconds, and its peak memory in 10^9 bytes, both gradients included."""
    from benchmarks._contestants import build
    from benchmarks._inputs import make_inputs
    from benchmarks._machine import peak_above

    torch.set_num_threads(THREADS)
    what = json.loads(job)
    case, one = Case(**what["case"]), contestant_from(what["contestant"])
    build(one, make_inputs(replace(case, classes=512)))()  # a warm-up: loading libraries and compiling does not count
    call = build(one, make_inputs(case))
    losses: list[Tensor] = []
    wall, cpu = time.perf_counter(), time.process_time()
    peak, _ = peak_above(lambda: losses.append(call()), case.device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert math.isfinite(losses[0].item())
    print(json.dumps({"seconds": round(wall, 1), "cpu seconds": round(cpu, 1), "GB": round(peak / 1e9, 2)}))


def help_of(program: str, verb: str) -> str:
    """Python code that prints the help of a subcommand."""
    return f"import sys; sys.argv = [{program!r}, {verb!r}, '--help']; from {program}.cli import main; main()"


def start_up(rounds: int = 3) -> None:
    """T20: CPU seconds of an import or a help page, the median of ``rounds``."""
    code = {
        "torch alone": "import torch",
        "abkd's losses": "import abkd; abkd.AlphaBeta(0.2, 0.7); abkd.linear_divergence",
        "abkd's trainer": "from abkd import DistillTrainer",
        "abkd distill --help": help_of("abkd", "distill"),
    }
    if importlib.util.find_spec("trl") is not None:
        code["TRL's trainer"] = "from trl import DistillationTrainer"
        code["trl distillation --help"] = help_of("trl", "distillation")
    for name, text in code.items():
        seconds, lines = [], 0
        for _ in range(rounds):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            lines = len(done.stdout.splitlines())
        length = f", {lines} lines" if name.endswith("help") else ""
        print(f"T20  {name:24} {statistics.median(seconds):.1f} s of CPU time{length}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of the given parts; by default, all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="T13 | T15 | T20")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        measure(chosen.measure)
        return 0
    jobs = {"T13": mixed_dtypes, "T15": large_vocabulary, "T20": start_up}
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for part in chosen.parts or PARTS:
        jobs[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
