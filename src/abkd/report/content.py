"""The content of the page: all its numbers and sentences, as plain text for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from abkd.metrics import METRICS, Metric, in_sentence
from abkd.plots.records import having, is_number
from abkd.report.figures import Picture, comparison_pictures, run_pictures
from abkd.report.files import Record, RunFiles, held_out_values
from abkd.report.results import BEST, headlines, result_of, sentence
from abkd.report.table import Card, Table, cards_of, table_of

COVERS = (
    "Forward KL is mode-covering: the student spreads over everything that the teacher might say, which perplexity and "
    "forward KL reward. α-β is mode-seeking: a small student gives up what exceeds its capacity and keeps the main "
    "choices of the teacher, which scores of answers sampled at temperature 1 reward. Greedy decoding depends only on "
    "the top token and hides most of the difference."
)
TRADED = ("rouge_l_sampled", "rouge_l_greedy", "perplexity", "forward_kl")  # what the text above is about
CLIP = "zero-shot-image-classification"
TRANSDUCTIVE = {
    "all": "Transductive: images of the new classes were also used in training, without their labels.",
    "base": "Not transductive: no image of a new class was used in training.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prompt, the reference answer, and the answer of each model."""

    prompt: str
    reference: str
    models: list[tuple[str, str, bool]]  # name, text, highlighted


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The input of the template; empty parts are left out of the page."""

    title: str
    kicker: str
    summary: list[str]
    objective: str
    cards: list[Card]
    table: Table | None
    trade: list[str]
    comparison: list[Picture]
    pictures: list[Picture]
    answers: list[Answer]
    notes: list[str]
    facts: list[tuple[str, str]]
    recipe: str
    version: str
    command: str
    compared: str = "Objectives side by side"


def page_of(files: RunFiles) -> Page:
    """Compose the page from what the run directory holds."""
    rows = files.demo.get("rows") or rows_of(files)
    highlight = files.demo.get("highlight") or "student after"
    compare = bool(files.demo.get("compare"))
    return Page(
        title=title_of(files),
        kicker="Comparison of objectives" if compare else "Distillation report",
        summary=_summary(files),
        objective=objective_of(files),
        cards=cards_of(rows, highlight),
        table=table_of(rows, highlight),
        trade=trade_of(rows, highlight) if files.demo else course_of(files),
        comparison=comparison_pictures(rows) if compare else [],
        pictures=run_pictures(files.metrics, f"{objective_of(files)} {files.recipe.get('divergence', '')}"),
        answers=[_answer(entry, highlight) for entry in files.demo.get("answers") or []],
        notes=[str(note) for note in files.demo.get("notes") or []],
        facts=facts_of(files.run),
        recipe=files.recipe_text,
        command=files.command(),
        version=str((files.run.get("versions") or {}).get("abkd", "")),
    )


def rows_of(files: RunFiles) -> list[Record]:
    """Table rows of a run without a demo table: its first and last evaluation, and the teacher's numbers."""
    evaluations = files.evaluations
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    size = {"parameters": files.run.get("student_parameters")}
    numbers, teacher = held_out_values(last)
    after = {"name": "student after", **numbers, **size}
    rows = [after]
    if first is not last:
        step = first.get("step", 0)
        rows.insert(
            0, {"name": f"student at step {step}" if step else "student before", **held_out_values(first)[0], **size}
        )
    if any(map(is_number, teacher.values())):
        rows.append({"name": "teacher", **teacher, "parameters": files.run.get("teacher_parameters") or None})
    return rows


def course_of(files: RunFiles) -> list[str]:
    """The last and best results of a run, with their caveats, where they are told in words."""
    result = result_of(files.evaluations)
    shown = [metric for metric in headlines([result]) if metric.in_words]
    if not shown:
        return []
    text = "; ".join(sentence(metric, result) for metric in shown)
    found = [f"{text[0].upper()}{text[1:]}. {BEST}"]
    seen = TRANSDUCTIVE.get(str(files.recipe.get("unlabelled_classes", "all")))
    if seen and files.recipe.get("task") == CLIP:
        found.append(seen)
    return found


def objective_of(files: RunFiles) -> str:
    """The objective: the formula that the run recorded, or else the divergence of the recipe."""
    recorded = files.run.get("objective") or files.run.get("formula") or ""
    if isinstance(recorded, dict):
        recorded = recorded.get("formula") or recorded.get("objective") or ""
    return str(recorded or files.recipe.get("divergence") or "")


def trade_of(rows: Sequence[Record], highlight: str) -> list[str]:
    """The trade-off between mode-covering and mode-seeking, and the measured students in it."""
    by_name = {str(row["name"]): row for row in rows}
    ours, base = by_name.get(highlight), by_name.get("forward KL")
    if ours is None or base is None or ours is base:
        return [COVERS]
    compared = [_against(ours, base, METRICS[name]) for name in TRADED]
    measured = "; ".join(part for part in compared if part)
    return [COVERS, f"Measured here, {highlight} against forward KL: {measured}."] if measured else [COVERS]


def _against(ours: Record, base: Record, metric: Metric) -> str:
    name = metric.name
    if len(having([ours, base], name)) < 2:
        return ""
    spread = sum(float(row.get(f"{name}_std") or 0) for row in (ours, base))
    close = " (within the spread of the samples)" if abs(ours[name] - base[name]) < spread else ""
    return f"{in_sentence(metric.full_name)} {metric.text(ours[name])} against {metric.text(base[name])}{close}"


def facts_of(run: Record) -> list[tuple[str, str]]:
    """The facts in ``run.json``, one line per name; a nested mapping becomes one line of its parts."""
    shown = {key: value for key, value in run.items() if key not in ("objective", "formula")}
    return [
        (str(key).replace("_", " "), _inline(value)) for key, value in shown.items() if value not in (None, "", {}, [])
    ]


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{key} {_inline(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " ".join(_inline(part) for part in value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 100_000:
        return f"{value:,}"
    return str(value)


def title_of(files: RunFiles) -> str:
    """The title of the demo, or which teacher was distilled into which student."""
    if files.demo.get("title"):
        return str(files.demo["title"])
    teacher, student = (files.recipe.get(key) for key in ("teacher_model_name_or_path", "model_name_or_path"))
    if teacher and student:
        names = teacher if isinstance(teacher, list) else [teacher]
        return (
            f"{' and '.join(PurePath(str(name)).name for name in names)} distilled into {PurePath(str(student)).name}"
        )
    return f"Distillation run {files.name}"


def _summary(files: RunFiles) -> list[str]:
    """Short facts under the title: steps, epochs and training time."""
    last = {key: event[key] for event in files.metrics for key in ("step", "epoch", "train_runtime") if key in event}
    parts = []
    if last.get("step"):
        parts.append(f"{last['step']:,} steps")
    if last.get("epoch"):
        parts.append(f"{last['epoch']:.3g} epochs")
    if is_number(last.get("train_runtime")):
        minutes, seconds = divmod(round(last["train_runtime"]), 60)
        parts.append(f"{minutes} min {seconds:02d} s of training" if minutes else f"{seconds} s of training")
    return parts


def _answer(entry: Record, highlight: str) -> Answer:
    models = [(str(name), str(text or ""), name == highlight) for name, text in (entry.get("answers") or {}).items()]
    return Answer(prompt=str(entry.get("prompt", "")), reference=str(entry.get("reference") or ""), models=models)
