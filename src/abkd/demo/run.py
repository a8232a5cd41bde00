"""``abkd demo``: a full distillation on built-in data, from teacher to report, on a laptop's CPU."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkd.demo import _show
from abkd.demo._measure import Examiner, distances, token_ids, write_rows
from abkd.demo.teacher import MODEL_NAME, demo_teacher_path
from abkd.demo.text import build_rows
from abkd.errors import OutputDirError
from abkd.output_dir import check_place, contents, note, remove_runs
from abkd.recipe import Recipe

COMPARED = {
    "forward KL": "ForwardKL()",
    "reverse KL": "ReverseKL()",
    "α-β (0.2, 0.7)": "AlphaBeta(0.2, 0.7)",
    "forward KL, then α-β": "stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))",
}
OURS = (
    *("demo.json", "report.html", "start", "student", "teacher", "students", "forward_kl", "reverse_kl", "alpha_beta"),
    *(f"data/{part}.{ending}" for part in ("train", "held_out") for ending in ("jsonl", "npz")),
)
"""Files that demos leave in their directory."""
DEFAULT = "forward KL, then α-β"
BEFORE, AFTER, TEACHER = "student before", "student after", "teacher"
TRADE = (
    "Forward KL is mass-covering: every token that the teacher might choose gets some probability, so perplexity is "
    "best, but sampled answers stray. α-β leans towards mode-seeking: probability goes to what the student is "
    "confident in, so sampled answers stay closer to the reference, but perplexity is higher. The demo trains half of "
    "the run with each."
)


@dataclass(frozen=True)
class Size:
    """The size of the demo."""

    train_rows: int
    epochs: float
    held_out: int
    answers: int
    seeds: tuple[int, ...]
    layers: int = 15
    influence_rows: int = 48


FULL = Size(train_rows=320, epochs=2, held_out=90, answers=40, seeds=(10,))
QUICK = Size(train_rows=96, epochs=1, held_out=24, answers=8, seeds=(10,), influence_rows=24)


def main(
    output_dir: Path, *, compare: bool = False, quick: bool = False, overwrite_output_dir: bool = False
) -> dict[str, Any]:
    """Shrink the teacher to a student, distil it, evaluate both (the student before and after), write a report.

    ``output_dir`` gets ``data/`` (the text), ``start/`` (the initial student), ``student/`` (the run; with ``compare``
    one directory per objective), ``demo.json`` and ``report.html``.

    Returns:
        The contents of ``demo.json``.

    Raises:
        ConfigError: the teacher cannot be found.
        OutputDirError: ``output_dir`` is in use.
    """
    began = time.monotonic()
    size = QUICK if quick else FULL
    claim(output_dir, overwrite=overwrite_output_dir)
    _announce(compare=compare)
    with _show.stage("finding the teacher (unpacked the first time)"):
        teacher = demo_teacher_path()
    held_out = _write_data(output_dir / "data", size)
    _make_student(output_dir, teacher, size)
    examiner = Examiner(teacher, held_out[: size.answers], size.seeds)
    rows = [examiner.row(TEACHER, teacher), examiner.row(BEFORE, output_dir / "start")]
    for name in COMPARED if compare else [DEFAULT]:
        run_dir = output_dir / ("student" if name == DEFAULT else _slug(name))
        seconds = _train(output_dir, run_dir, teacher, COMPARED[name], size)
        before, after, of_teacher = distances(run_dir)
        rows[0] |= of_teacher
        rows[1] |= before
        rows.append(examiner.row(name if compare else AFTER, run_dir) | after | {"train_seconds": seconds})
    result = _result(rows, examiner, output_dir, size, compare=compare)
    _write_report(result, output_dir)
    _show.ending(result, TRADE, output_dir, time.monotonic() - began)
    return result


def claim(output_dir: Path, *, overwrite: bool) -> None:
    """Take an empty directory, or with ``overwrite`` one that holds only files of demos and runs.

    Raises:
        OutputDirError: it is in use, or cannot be a demo's directory.
    """
    check_place(output_dir)
    if contents(output_dir).used and not overwrite:
        raise OutputDirError(
            f"{output_dir} is in use: choose another --output_dir, or replace it with --overwrite_output_dir"
        )
    remove_runs(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirError(f"cannot create {output_dir} ({error.strerror}); choose another --output_dir") from error
    note(output_dir, *OURS)
    (output_dir / "demo.json").write_text("{}", encoding="utf-8")


def _announce(*, compare: bool) -> None:
    _show.say("abkd demo: a 135 M language model teaches a copy of itself that has lost half of its layers.")
    if compare:
        _show.say(
            f"{len(COMPARED)} objectives, one after the other: about {3 * len(COMPARED) + 1} minutes on two cores with "
            "bf16 matrix units, four times as long on others."
        )


def _write_data(directory: Path, size: Size) -> list[Any]:
    train, held_out = build_rows()
    random.Random(0).shuffle(train)
    random.Random(0).shuffle(held_out)
    write_rows(train[: size.train_rows], directory / "train.jsonl")
    write_rows(held_out[: size.held_out], directory / "held_out.jsonl")
    return held_out[: size.held_out]


def _make_student(output_dir: Path, teacher: str, size: Size) -> None:
    import torch

    from abkd.models.loading import load_causal_lm, load_tokenizer
    from abkd.models.shrink import layer_influence, shrink

    model = load_causal_lm(teacher, what="teacher", dtype=torch.float32)
    examples = token_ids(output_dir / "data" / "train.jsonl", teacher, size.influence_rows)
    with _show.stage("measuring the influence of each of its layers") as bar:
        influence = layer_influence(model, examples, progress=bar)
    student, kept = shrink(model, size.layers, influence)
    student.save_pretrained(output_dir / "start")
    load_tokenizer(teacher, what="teacher").save_pretrained(output_dir / "start")
    _show.say(
        f"The student keeps layers {', '.join(map(str, kept))}: {student.num_parameters() / 1e6:.0f} M parameters "
        f"of {model.num_parameters() / 1e6:.0f} M."
    )


def _train(output_dir: Path, run_dir: Path, teacher: str, divergence: str, size: Size) -> float:
    """Distil by a recipe, as a user would; returns the duration in seconds."""
    import torch

    from abkd.precision import bf16_pays
    from abkd.run import distill

    recipe = Recipe.from_dict(
        {
            "model_name_or_path": str(output_dir / "start"),
            "teacher_model_name_or_path": teacher,
            "train_file": str(output_dir / "data" / "train.jsonl"),
            "eval_file": str(output_dir / "data" / "held_out.jsonl"),
            "output_dir": str(run_dir),
            "divergence": divergence,
            "learning_rate": 2e-4,
            "num_train_epochs": size.epochs,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 16,
            "max_length": 256,
            "group_by_length": True,
            "bf16": bf16_pays(),
            "use_cpu": not torch.cuda.is_available(),
            "logging_steps": 5,
            "save_strategy": "no",
            "teacher_model_init_kwargs": {"dtype": "bfloat16" if bf16_pays() else "float32"},
        }
    )
    began = time.monotonic()
    distill(recipe)
    return time.monotonic() - began


def _result(
    rows: list[dict[str, Any]], examiner: Examiner, output_dir: Path, size: Size, *, compare: bool
) -> dict[str, Any]:
    teacher, before, *after = rows
    final = DEFAULT if compare else AFTER
    shown = [TEACHER, BEFORE, *(row["name"] for row in after)]
    return {
        "title": f"{MODEL_NAME} → {before['parameters'] / 1e6:.0f} M parameters",
        "teacher": {"name": MODEL_NAME, "parameters": teacher["parameters"]},
        "student": str(output_dir / "student"),
        "rows": [before, *after, teacher],
        "highlight": final,
        "answers": [
            {
                "prompt": prompt,
                "reference": reference,
                "answers": {name: examiner.answers[name][number] for name in shown},
            }
            for number, (prompt, reference) in enumerate(
                zip(examiner.prompts[:3], examiner.references[:3], strict=True)
            )
        ],
        "notes": _notes(size),
        "compare": compare,
    }


def _notes(size: Size) -> list[str]:
    text = (
        f"Text: descriptions of Python's standard library, from its docstrings; {size.train_rows} training rows and "
        f"{size.held_out} held out, no function and no answer in both."
    )
    rouge = (
        f"ROUGE-L: answers to {size.answers} held-out questions against the docstrings; sampled at temperature 1 from "
        f"the full vocabulary, {len(size.seeds)} seed{'s' * (len(size.seeds) > 1)}."
    )
    return [text, rouge]


def _write_report(result: Mapping[str, Any], output_dir: Path) -> None:
    from abkd.report import write_report

    text = json.dumps(result, indent=1, ensure_ascii=False)
    student = output_dir / "student"
    (student / "demo.json").write_text(text, encoding="utf-8")
    shutil.copy(write_report(student), output_dir / "report.html")
    (output_dir / "demo.json").write_text(text, encoding="utf-8")


def _slug(name: str) -> str:
    return {"forward KL": "forward_kl", "reverse KL": "reverse_kl"}.get(name, "alpha_beta")
