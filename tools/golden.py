"""Golden runs: tiny runs of each task, to verify that a refactoring does not change their results.

    python tools/golden.py BASE        compare this checkout with the commit BASE on this machine, bit for bit
    python tools/golden.py             compare this checkout with tests/golden.json, within a tolerance
    python tools/golden.py --record    write tests/golden.json

Each task is run in one process, resumed from its first checkpoint, and run in two processes. Metrics are compared in
the order in which a run logs them, so their names may differ between commits. Runs use recipes, as a user's runs do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "golden.json"
TOLERANCE = 1e-3  # between machines: rounding differs, and a few training steps amplify it
_OF_TIME = ("runtime", "per_second", "seconds")
_MODES = ("one process", "resumed", "two processes")
_BATCH = 4

_RUN = {"max_steps": 6, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps"}
_RUN |= {"save_steps": 3, "use_cpu": True, "seed": 3, "learning_rate": 3e-3}
_TEXT = {"model_name_or_path": "llama", "teacher_model_name_or_path": "teacher", "train_file": "rows.jsonl"}
_TEXT |= {"eval_file": "held_out.jsonl", "max_length": 64}
_IMAGES = {"train_file": "images.npz", "eval_file": "held_out.npz"}
_CLASSIFIERS = {"task": "image-classification", "model_name_or_path": "vit", "teacher_model_name_or_path": "resnet"}
_CLIP = {"task": "zero-shot-image-classification", "model_name_or_path": "clip"}
_CLIP |= {"teacher_model_name_or_path": "clip-teacher", "visual_prompt_length": 2, "visual_prompt_depth": 1}
CASES: dict[str, dict[str, Any]] = {
    "text": _TEXT | {"divergence": "AlphaBeta(0.2, 0.7)", "ce_weight": 0.3, "gradient_accumulation_steps": 2},
    "written text": _TEXT
    | {
        "model_name_or_path": "gpt2",
        "source": "Mix(0.5, StudentSamples(), Dataset())",
        "max_completion_length": 8,
        "divergence": "stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))",
    },
    "images": _IMAGES
    | _CLASSIFIERS
    | {
        "divergence": "DKD(nckd_weight=4.0)",
        "kd_temperature": 4.0,
        "ce_weight": 0.5,
        "augmentation": "[HorizontalFlip()]",
    },
    "clip": _IMAGES | _CLIP | {"divergence": "AlphaBeta(0.6, 0.5)"},
}


def main() -> int:
    """Run the requested comparison; returns 1 if results differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", nargs="?", help="a commit to compare with, bit for bit")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        _work(Path(options.work))
        return 0
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name)
        _inputs(inputs)
        ours = run_all(ROOT, inputs)
        if options.base is None:
            return _settle(ours, record=options.record)
        with _checkout(options.base, inputs) as base:
            found = differences(run_all(base, inputs), ours, tolerance=0.0)
            return _report(found, f"bit-identical to {options.base}")


def run_all(checkout: Path, inputs: Path) -> dict[str, dict[str, Any]]:
    """The metrics and weights of each case in each mode, run with the code of ``checkout``."""
    work = Path(tempfile.mkdtemp(dir=inputs))
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for words in ([], launched):
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        command = [sys.executable, *words, __file__, "--work", str(work)]
        done = subprocess.run(command, cwd=inputs, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"a run with {checkout} failed:\n{done.stderr[-4000:]}")
    return {case: {mode: _result(work / mode / case) for mode in _MODES} for case in CASES}


def differences(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], *, tolerance: float
) -> list[str]:
    """One line for each run whose metrics (or, without a tolerance, weights) differ."""
    found = []
    for case, modes in before.items():
        for mode, then in modes.items():
            now = after[case][mode]
            where = f"{case}, {mode}"
            if len(then["numbers"]) != len(now["numbers"]):
                found.append(f"{where}: expected {len(then['numbers'])} numbers, got {len(now['numbers'])}")
                continue
            pairs = enumerate(zip(then["numbers"], now["numbers"], strict=True))
            other = [(place, a, b) for place, (a, b) in pairs if not _same(a, b, tolerance)]
            if other:
                place, old, new = other[0]
                name = now["names"][place] if "names" in now else f"number {place}"
                found.append(
                    f"{where}: {len(other)} numbers differ, the first is {name}: expected {old!r}, got {new!r}"
                )
            elif not tolerance and then["weights"] != now["weights"]:
                found.append(f"{where}: the weights differ")
    return found


def _same(first: float, second: float, tolerance: float) -> bool:
    return first == second or math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def _settle(ours: dict[str, dict[str, Any]], *, record: bool) -> int:
    """Write the recorded results, or compare with them."""
    if record:
        kept = {case: {mode: _rounded(each) for mode, each in modes.items()} for case, modes in ours.items()}
        lines = [f"{json.dumps(case)}: {json.dumps(modes)}" for case, modes in kept.items()]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return 0
    return _report(differences(json.loads(RECORD.read_text()), ours, tolerance=TOLERANCE), "equal to the record")


def _rounded(result: Mapping[str, Any]) -> dict[str, list[float]]:
    return {"numbers": [float(f"{number:.6g}") for number in result["numbers"]]}


def _report(found: list[str], otherwise: str) -> int:
    print("\n".join(found) or f"{len(CASES)} cases in {len(_MODES)} modes: {otherwise}")
    return bool(found)


@contextmanager
def _checkout(commit: str, directory: Path) -> Iterator[Path]:
    """A git worktree of a commit."""
    place = directory / "base"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(place), commit], check=True)
    try:
        yield place
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(place)], check=True)


def _inputs(directory: Path) -> None:
    command = (
        "import sys; from pathlib import Path; from golden_inputs import write_inputs; write_inputs(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", command, str(directory)], check=True, env=environment, capture_output=True)


def _work(work: Path) -> None:
    """All runs of one launch, in the folder of the inputs; each of two processes runs this."""
    from abkd.recipe import Recipe
    from abkd.run import distill

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for case, settings in CASES.items():
        size = _BATCH // processes
        values = _RUN | settings | {"per_device_train_batch_size": size, "per_device_eval_batch_size": size}
        target = work / ("one process" if processes == 1 else "two processes") / case
        distill(Recipe.from_dict(values | {"output_dir": str(target)}))
        if processes == 1:
            again = _interrupted(target, work / "resumed" / case)
            distill(Recipe.from_dict(values | {"output_dir": str(again)}), resume=True)
    sys.stdout.flush()
    os._exit(0)  # the destructors of the process groups may deadlock


def _interrupted(finished: Path, copy: Path) -> Path:
    """A copy of a run's folder as it is if the run dies after its first checkpoint."""
    shutil.copytree(finished, copy)
    (copy / "result.json").unlink()
    (copy / "model.safetensors").unlink()
    shutil.rmtree(copy / "checkpoint-6")
    return copy


def _result(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    logged = [(name, value) for line in lines for name, value in line.items() if isinstance(value, int | float)]
    logged = [(name, float(value)) for name, value in logged if not any(word in name for word in _OF_TIME)]
    weights = hashlib.sha256()
    for name, tensor in sorted(load_file(directory / "model.safetensors").items()):
        weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return {"names": [n for n, _ in logged], "numbers": [v for _, v in logged], "weights": weights.hexdigest()}


if __name__ == "__main__":
    raise SystemExit(main())
