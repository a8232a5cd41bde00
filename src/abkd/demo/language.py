"""``abkd demo``: a full distillation on built-in text, from teacher to report, on a laptop's CPU.

Its directory gets ``data/`` (the text), ``start/`` (the initial student) and ``student/`` (the run; with ``--compare``
one directory per objective).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from abkd.data import prepare_dataset
from abkd.demo.harness import Demo, Size, console, data_files, recipe, say, stage, write_result
from abkd.demo.teacher import MODEL_NAME, demo_teacher_path
from abkd.demo.text import Row, Turns, build_rows
from abkd.evaluation import answer_metrics
from abkd.metrics import METRICS, in_sentence
from abkd.models.loading import load_causal_lm, load_tokenizer
from abkd.models.shrink import layer_influence, shrink
from abkd.precision import bf16_pays
from abkd.report import write_report
from abkd.report.files import Record, RunFiles, held_out_values

DEFAULT = "forward KL, then α-β"
OBJECTIVES = {
    "forward KL": ("forward_kl", "ForwardKL()"),
    "reverse KL": ("reverse_kl", "ReverseKL()"),
    "α-β (0.2, 0.7)": ("alpha_beta", "AlphaBeta(0.2, 0.7)"),
    DEFAULT: ("student", "stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))"),
}
"""The directory of the run and the divergence of each objective."""
_BEFORE, _AFTER, _TEACHER = "student before", "student after", "teacher"
_NEW_TOKENS = 64  # the longest reference has about as many
_TRADE = (
    "Forward KL is mass-covering: every token that the teacher might choose gets some probability, so perplexity is "
    "best, but sampled answers stray. α-β leans towards mode-seeking: probability goes to what the student is "
    "confident in, so sampled answers stay closer to the reference, but perplexity is higher. The demo trains half of "
    "the run with each."
)


@dataclass(frozen=True)
class _Size(Size):
    train_rows: int
    influence_rows: int
    held_out: int
    answers: int


class _Evaluated(NamedTuple):
    """The greedy answers of a model, and its metrics."""

    answers: list[str]
    metrics: dict[str, float]


def _steps(output_dir: Path, size: _Size, *, compare: bool) -> Record:
    say("abkd demo: a 135 M language model teaches a copy of itself that has lost half of its layers.")
    if compare:
        say(
            f"{len(OBJECTIVES)} objectives, one after the other: about {3 * len(OBJECTIVES) + 1} minutes on two cores "
            "with bf16 matrix units, four times as long on others."
        )
    with stage("finding the teacher (unpacked the first time)"):
        teacher = demo_teacher_path()
    train, held_out = _write_data(output_dir / "data", size)
    start, student = output_dir / "start", output_dir / "student"
    make_student(start, teacher, train[: size.influence_rows])
    questions = held_out[: size.answers]
    evaluate = partial(evaluate_answers, tokenizer=teacher, rows=questions, seeds=size.seeds)
    models = {_TEACHER: evaluate(_TEACHER, teacher), _BEFORE: evaluate(_BEFORE, start)}
    for objective in OBJECTIVES if compare else [DEFAULT]:
        run_dir, seconds = _distil(output_dir, teacher, objective, size.epochs)
        name = objective if compare else _AFTER
        models[name] = evaluate(name, run_dir)
        _add_distances(run_dir, models[_BEFORE], models[name], models[_TEACHER])
        models[name].metrics["train_seconds"] = seconds
    result = _result(student, size, questions, models, compare=compare)
    write_result(result, student)
    write_result(result, output_dir, write_report(student))
    _show(result, output_dir)
    return result


def _write_data(directory: Path, size: _Size) -> tuple[list[Row], list[Row]]:
    train, held_out = build_rows()
    random.Random(0).shuffle(train)
    random.Random(0).shuffle(held_out)
    parts = train[: size.train_rows], held_out[: size.held_out]
    for rows, file in zip(parts, data_files(directory, "jsonl"), strict=True):
        write_rows(rows, file)
    return parts


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSONL, like a user's own data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_student(directory: Path, teacher: str, rows: Sequence[Row]) -> None:
    """Save the initial student: the half of the teacher's layers with the most influence, measured on ``rows``."""
    model = load_causal_lm(teacher, what="teacher", dtype=torch.float32)
    tokenizer = load_tokenizer(teacher, what="teacher")
    examples = [example["input_ids"] for example in prepare_dataset(rows, tokenizer, max_length=512)]
    with stage("measuring the influence of each of its layers") as bar:
        influence = layer_influence(model, examples, progress=bar)
    student, kept = shrink(model, len(influence) // 2, influence)
    student.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    say(
        f"The student keeps layers {', '.join(map(str, kept))}: {student.num_parameters() / 1e6:.0f} M parameters "
        f"of {model.num_parameters() / 1e6:.0f} M."
    )


def evaluate_answers(
    name: str, model: str | Path, *, tokenizer: str, rows: Sequence[Mapping[str, Turns]], seeds: Sequence[int]
) -> _Evaluated:
    """ROUGE-L of greedy and sampled answers to the questions of ``rows``, speed and parameters of a saved model."""
    loaded = load_causal_lm(str(model), what="model", dtype=_faster_dtype())
    words = load_tokenizer(tokenizer, what="tokenizer")
    prompts = [
        words.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for row in rows
    ]
    references = [row["completion"][-1]["content"] for row in rows]
    with stage(f"{name}: answering {len(rows)} held-out questions") as bar:
        answers, metrics = answer_metrics(
            loaded, words, prompts, references, max_new_tokens=_NEW_TOKENS, seeds=seeds, progress=bar
        )
    return _Evaluated(answers, {**metrics, "parameters": loaded.num_parameters()})


def _faster_dtype() -> str:
    """The dtype in which this machine multiplies faster."""
    return "bfloat16" if bf16_pays() else "float32"


def _distil(output_dir: Path, teacher: str, objective: str, epochs: float) -> tuple[Path, float]:
    """Distil by a recipe, as a user would; returns the directory of the run and its duration in seconds."""
    from abkd.run import distill

    directory, divergence = OBJECTIVES[objective]
    run = recipe(
        output_dir / directory,
        data_files(output_dir / "data", "jsonl"),
        model_name_or_path=str(output_dir / "start"),
        teacher_model_name_or_path=teacher,
        divergence=divergence,
        learning_rate=2e-4,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        max_length=256,
        group_by_length=True,
        bf16=_faster_dtype() == "bfloat16",
        logging_steps=5,
        teacher_model_init_kwargs={"dtype": _faster_dtype()},
    )
    began = time.monotonic()
    distill(run)
    return output_dir / directory, time.monotonic() - began


def _add_distances(run_dir: Path, before: _Evaluated, after: _Evaluated, teacher: _Evaluated) -> None:
    """Add the metrics of the first and the last evaluation of a run, and the teacher's."""
    evaluations = RunFiles.read(run_dir).evaluations
    before.metrics.update(held_out_values(evaluations[0])[0])
    last, of_teacher = held_out_values(evaluations[-1])
    after.metrics.update(last)
    ideal = {name: METRICS[name].ideal for name in last if name in METRICS}
    teacher.metrics.update(of_teacher, **{name: value for name, value in ideal.items() if value is not None})


def _result(
    student: Path, size: _Size, questions: Sequence[Row], models: Mapping[str, _Evaluated], *, compare: bool
) -> Record:
    text = (
        f"Text: descriptions of Python's standard library, from its docstrings; {size.train_rows} training rows and "
        f"{size.held_out} held out, no function and no answer in both."
    )
    rouge = (
        f"ROUGE-L: answers to {size.answers} held-out questions against the docstrings; sampled at temperature 1 from "
        f"the full vocabulary, {len(size.seeds)} seed{'s' * (len(size.seeds) > 1)}."
    )
    teacher, before, *students = models
    sizes = {name: models[name].metrics["parameters"] for name in (teacher, before)}
    return {
        "title": f"{MODEL_NAME} → {sizes[before] / 1e6:.0f} M parameters",
        "teacher": {"name": MODEL_NAME, "parameters": sizes[teacher]},
        "student": str(student),
        "rows": [{"name": name, **models[name].metrics} for name in (before, *students, teacher)],
        "highlight": DEFAULT if compare else _AFTER,
        "answers": [
            {
                "prompt": row["prompt"][-1]["content"],
                "reference": row["completion"][-1]["content"],
                "answers": {name: model.answers[number] for name, model in models.items()},
            }
            for number, row in enumerate(questions[:3])
        ],
        "notes": [text, rouge],
        "compare": compare,
    }


def _show(result: Record, output_dir: Path) -> None:
    """Print the table, answers side by side, and the paths of student and report."""
    console.print()
    console.print(_table(result))
    say(_TRADE)
    for note in result["notes"]:
        console.print(Text(note, style="dim"))
    for example in result["answers"][:2]:
        console.print(_answers(example))
    say(f"The report:   {output_dir / 'report.html'}")
    say(f"The student:  AutoModelForCausalLM.from_pretrained({result['student']!r})")


def _table(result: Record) -> Table:
    """A row per metric and a column per model, which fits a terminal of 80 columns."""
    table = Table(title=result["title"], title_style="bold", header_style="bold")
    table.add_column("")
    for row in result["rows"]:
        table.add_column(row["name"], justify="right", style="bold green" if row["name"] == result["highlight"] else "")
    for metric in METRICS.values():
        values = [row.get(metric.name) for row in result["rows"]]
        if metric.shown_from and any(value is not None for value in values):
            label = in_sentence(metric.full_name) + (f" ({metric.unit})" if metric.unit else "")
            table.add_row(label, *("–" if value is None else metric.text(value) for value in values))
    return table


def _answers(example: Record) -> Panel:
    answers = (_line(who, " ".join(text.split())) for who, text in example["answers"].items())
    reference = _line("reference", example["reference"], "dim")
    return Panel(Group(Text(example["prompt"], style="bold"), reference, *answers))


def _line(who: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{who}: ", "bold cyan"), (text, style))


DEMO = Demo(
    full=_Size(epochs=2, seeds=(10,), train_rows=320, influence_rows=48, held_out=90, answers=40),
    quick=_Size(epochs=1, seeds=(10,), train_rows=96, influence_rows=24, held_out=24, answers=8),
    files=("data/train.jsonl", "data/held_out.jsonl", "start", *(directory for directory, _ in OBJECTIVES.values())),
    steps=partial(_steps, compare=False),
)
COMPARISON = replace(DEMO, steps=partial(_steps, compare=True))
