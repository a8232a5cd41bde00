"""Time and memory until the first step of large data: ``python -m benchmarks.large_data`` (see README.md).

Rows are synthetic and models tiny, so that only the data takes time. Each start is a fresh process; the second one
reuses the cache of the first.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import _machine, _processes, _tables
from benchmarks._training import RESULTS

COLUMNS = (
    "rows",
    "file",
    "start",
    "first step after",
    "of it imports",
    "CPU time",
    "peak",
    "peak of a helper",
    "kept on disk",
)
console = Console()

_WORDS = """a the of to and in that it is was for on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many some so
these would other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know""".split()


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write ``large_data.md``."""
    options = _parser().parse_args(arguments)
    lines: list[list[str]] = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            lines += measure(rows, Path(folder))
        _tables.show(console, "", COLUMNS, lines)
    options.out.mkdir(parents=True, exist_ok=True)
    about = _tables.about(_machine.facts(_machine.cores(), "cpu"), "python -m benchmarks.large_data")
    text = "\n".join(["# Large data\n", about, _tables.markdown(COLUMNS, lines)])
    (options.out / "large_data.md").write_text(text, encoding="utf-8")


def measure(rows: int, folder: Path) -> list[list[str]]:
    """The lines of the table for this many rows: the first start and the second."""
    data = folder / "train.jsonl"
    write_rows(data, rows)
    save_models(folder, data)
    lines = []
    for start in ("first", "second"):
        found = run(folder, start)
        size = sum(file.stat().st_size for file in (folder / "cache" / "data").rglob("*") if file.is_file())
        sizes = (data.stat().st_size / 1e9, found["peak"], found["peak_of_helpers"], size / 1e9)
        file, peak, helper, kept = (f"{value:.2f} GB" for value in sizes)
        seconds, imports, busy = (f"{found[name]:.1f} s" for name in ("seconds", "imported", "busy"))
        helper = helper if start == "first" else "–"  # the second start does not tokenise
        lines.append([f"{rows:,}", file, start, seconds, imports, busy, peak, helper, kept])
    return lines


def write_rows(file: Path, rows: int) -> None:
    """Write distinct questions and answers of about 400 bytes."""
    chance = random.Random(0)
    with file.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            question, answer = (" ".join(chance.choices(_WORDS, k=count)) for count in (24, 48))
            handle.write(json.dumps({"prompt": f"{number}: {question}?", "completion": f" {answer}."}) + "\n")


def save_models(folder: Path, data: Path) -> None:
    """Save a student and a teacher of a few thousand parameters, with a tokenizer of realistic size."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = ByteLevelBPETokenizer()
    with data.open(encoding="utf-8") as lines:
        core.train_from_iterator((next(lines) for _ in range(2_000)), 8_000, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, bos_token="<s>", eos_token="</s>")
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        size = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        model = LlamaForCausalLM(size)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def run(folder: Path, start: str) -> dict[str, Any]:
    """The measurements of a fresh process up to its first step."""
    values = {
        "model_name_or_path": str(folder / "student"),
        "teacher_model_name_or_path": str(folder / "teacher"),
        "train_file": str(folder / "train.jsonl"),
        "output_dir": str(folder / start),
        "max_steps": 3,
        "max_length": 256,
        "eval_fraction": 1e-4,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
    }
    (folder / "recipe.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    file = folder / f"{start}.json"
    words = ["-m", "benchmarks._large_data_worker", str(time.time()), str(file), str(folder / "recipe.yaml")]
    _processes.run(words, {"ABKD_CACHE": str(folder / "cache")})
    return json.loads(file.read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_data", description="Large data.")
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000], help="how many rows")
    parser.add_argument("--folder", type=Path, default=None, help="folder for 5 GB of temporary files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder of the table")
    return parser


if __name__ == "__main__":
    main()
