"""A comparison of text sources and teachers: ``python -m benchmarks.which_source`` (see README.md).

A small student, distilled briefly beforehand, is trained for the same number of steps on text of each source and with
each kind of teacher, and evaluated in the same way. Finished measurements are kept in ``which_source.jsonl``;
``--fresh`` starts over.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from abkd import DistillConfig, DistillTrainer, ForwardKL
from abkd.cli._cache import cache_recipe
from abkd.cli._generate import generate_text
from abkd.data import load_rows
from abkd.demo.language import evaluate_answers, make_student, write_rows
from abkd.demo.teacher import demo_teacher_path
from abkd.demo.text import build_rows
from abkd.recipe import Recipe
from abkd.run import distill
from benchmarks import _machine, _which_source_report
from benchmarks._record import Record
from benchmarks._training import RESULTS

_CODE = tuple(f"src/abkd/{name}" for name in "ops divergences teachers sources generation trainer data models".split())
BEFORE, TEACHER = "before", "teacher"
FORWARD, REVERSE = "teacher's text, sampled", "student's text, reverse KL"  # f-DISTILL's KL and RKL
console = Console()


@dataclass(frozen=True)
class Size:
    """The size of the benchmark: rows of data, steps of ``batch_size`` rows, held-out rows, evaluation questions, …"""

    rows: int
    steps_before: int
    steps: int
    batch_size: int
    held_out: int
    questions: int
    tokens: int
    max_length: int


FULL = Size(rows=256, steps_before=48, steps=32, batch_size=8, held_out=48, questions=32, tokens=48, max_length=256)
QUICK = Size(rows=8, steps_before=2, steps=3, batch_size=2, held_out=4, questions=2, tokens=6, max_length=1024)


@dataclass(frozen=True)
class Way:
    """A variant of the training. ``{work}`` is a folder for text and caches that are written beforehand."""

    source: str = "Dataset()"
    teacher: str = "Live()"
    divergence: str = "ForwardKL()"


WAYS = {
    "dataset": Way(),
    "teacher's text, greedy": Way("TeacherSamples(temperature=0, file='{work}/greedy.jsonl')"),
    FORWARD: Way("TeacherSamples(file='{work}/sampled.jsonl')"),
    "student's text": Way("StudentSamples()"),
    "half student's, half dataset": Way("Mix(0.5, StudentSamples(), Dataset())"),
    "student's text, replayed": Way("Replay(StudentSamples(), capacity={kept}, fresh=0.25)"),
    "dataset, top-k cache": Way(teacher="TopKCache(k=64, path='{work}/topk')"),
    "dataset, hidden cache": Way(teacher="HiddenCache(path='{work}/hidden')"),
    REVERSE: Way("StudentSamples()", divergence="ReverseKL()"),
}


@dataclass(frozen=True)
class Pair:
    """The paths of a teacher and of the initial student, and a working folder."""

    teacher: str
    student: str
    work: Path

    def recipe(self, name: str, way: Way, size: Size, **more: Any) -> Recipe:
        """The recipe of a run of ``way``, starting from the student that was distilled beforehand."""
        room = {"work": self.work, "kept": size.steps * size.batch_size // 4}
        return Recipe.from_dict(
            {
                "model_name_or_path": str(self.work / BEFORE),
                "teacher_model_name_or_path": self.teacher,
                "train_file": str(self.work / "data" / "train.jsonl"),
                "eval_fraction": 0,
                "source": way.source.format(**room),
                "teacher": way.teacher.format(**room),
                "divergence": way.divergence,
                "max_steps": size.steps,
                "learning_rate": 2e-4,
                "per_device_train_batch_size": size.batch_size,
                "max_length": size.max_length,
                "max_completion_length": size.tokens,
                "logging_steps": 1,
                "save_strategy": "no",
                "output_dir": str(self.work / name),
                "overwrite_output_dir": True,
                **_numerics(),
                **more,
            }
        )


def _numerics() -> dict[str, Any]:
    """The demo's numerical settings."""
    return {
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "teacher_model_init_kwargs": {"dtype": "bfloat16"},
        "per_device_eval_batch_size": 16,
        "dataloader_pin_memory": False,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the missing measurements, then print and write the tables."""
    options = _parser().parse_args(arguments)
    size, work = QUICK if options.quick else FULL, options.out / "which_source"
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    pair = make_pair(work, size, options.teacher, options.student)
    facts = _machine.facts(_machine.cores(), "cuda" if torch.cuda.is_available() else "cpu")
    wanted = [
        {"name": name, "way": asdict(way), "size": asdict(size), "teacher": pair.teacher, "student": pair.student}
        for name, way in {TEACHER: Way(), BEFORE: Way(), **WAYS}.items()
    ]
    record = Record(options.out / "which_source.jsonl", facts, _CODE, fresh=options.fresh)
    for job in wanted:
        record.result(job, lambda job: measure(pair, job["name"], size))
    lines = record.lines(wanted)
    rows = [{"name": line["job"]["name"], **line["result"]} for line in lines]
    rows[0]["perplexity"] = rows[1]["teacher_perplexity"]
    _which_source_report.write(rows, asdict(size), facts, options.out, console)
    record.warn(lines, console)


def make_pair(work: Path, size: Size, teacher: str | None, student: str | None) -> Pair:
    """The demo's pair, or the given one, with the demo's text; the student is distilled for ``steps_before`` steps."""
    teacher = teacher or demo_teacher_path()
    train, held_out = build_rows()
    for name, rows, count in (("train", train, size.rows), ("held_out", held_out, size.held_out)):
        random.Random(0).shuffle(rows)
        write_rows(rows[:count], work / "data" / f"{name}.jsonl")
    if student is None:
        student = str(work / "start")
        if not (work / "start").exists():
            make_student(work / "start", teacher, train[: min(size.rows, 48)])
    pair = Pair(teacher, student, work)
    if not (work / BEFORE / "model.safetensors").is_file():
        console.rule("distilling the student briefly")
        distill(pair.recipe(BEFORE, Way(), size, model_name_or_path=student, max_steps=size.steps_before))
    return pair


def measure(pair: Pair, name: str, size: Size) -> dict[str, Any]:
    """The cost and quality of one variant; its student is deleted after the evaluation."""
    console.rule(name)
    held_out = load_rows(pair.work / "data" / "held_out.jsonl")
    if name == TEACHER:
        return _answers(name, pair, held_out, size)
    if name == BEFORE:
        return exam(name, pair, held_out, size)
    recipe = pair.recipe(name, WAYS[name], size)
    beforehand = _prepare(recipe, WAYS[name])
    costs = _costs(distill(recipe), size)
    result = {"beforehand_seconds": beforehand, **costs, **exam(name, pair, held_out, size)}
    shutil.rmtree(recipe.output_dir)
    return result


def _prepare(recipe: Recipe, way: Way) -> float | None:
    """Seconds of generating the teacher's text or building its cache, including loading; None if neither is needed."""
    began = time.monotonic()
    if "TeacherSamples" in way.source:
        generate_text(recipe, None)
    elif "Cache" in way.teacher:
        cache_recipe(recipe, console)
    else:
        return None
    return time.monotonic() - began


def _costs(trainer: DistillTrainer, size: Size) -> dict[str, float]:
    """Seconds of training, of which generation, and trained tokens, from the log.

    Every step is one batch, either of the data or of one writer.
    """
    data: Any = trainer.train_dataset
    own = data.trained_tokens / len(data)
    history: list[Any] = trainer.state.log_history
    steps = [record for record in history if "loss" in record]
    seconds = history[-1]["train_runtime"]
    tokens = sum(size.batch_size * step.get("completion_length", own) for step in steps)
    written = [step for step in steps if "generated_tokens_per_second" in step]
    writing = sum(size.batch_size * step["completion_length"] / step["generated_tokens_per_second"] for step in written)
    return {
        "train_seconds": seconds,
        "writing_seconds": writing,
        "tokens_per_second": tokens / seconds,
        "on_policy_fraction": sum(step.get("on_policy_fraction", 0.0) for step in steps) / len(steps),
    }


def exam(name: str, pair: Pair, held_out: Sequence[Any], size: Size) -> dict[str, Any]:
    """Evaluate a student: divergences to the live teacher, R_cvg and R_llh, and ROUGE-L against the references."""
    config = DistillConfig(
        output_dir=str(pair.work / "exam"),
        divergence=ForwardKL(),
        eval_samples=size.questions,
        max_length=size.max_length,
        max_completion_length=size.tokens,
        **_numerics(),
    )
    student = str(pair.work / name)
    found = DistillTrainer(student, pair.teacher, config, eval_dataset=list(held_out)).evaluate()
    names = ("forward_kl", "reverse_kl", "perplexity", "teacher_perplexity", "top1_agreement", "r_llh", "r_cvg")
    return {**{each: found[f"eval_{each}"] for each in names}, **_answers(name, pair, held_out, size)}


def _answers(name: str, pair: Pair, held_out: Sequence[Any], size: Size) -> dict[str, Any]:
    path = pair.teacher if name == TEACHER else str(pair.work / name)
    rows = held_out[: size.questions]
    found = evaluate_answers(name, path, tokenizer=pair.teacher, rows=rows, seeds=(10, 20)).metrics
    return {each: found[each] for each in ("rouge_l_greedy", "rouge_l_sampled", "parameters")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.which_source", description="A comparison of text sources and teachers."
    )
    parser.add_argument("--teacher", help="a directory or hub name (default: the demo's teacher)")
    parser.add_argument("--student", help="the initial student (default: half of the demo's teacher)")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few steps")
    parser.add_argument("--fresh", action="store_true", help="discard previous measurements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    return parser


if __name__ == "__main__":
    main()
