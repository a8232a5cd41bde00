"""The figures of the page, as SVG, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from abkd import plots
from abkd.plots.records import is_number
from abkd.report.files import Record


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure inside the page and its caption."""

    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric that compares several students; ``teacher``: whether the teacher's own value is meaningful."""

    key: str
    title: str
    log: bool = False
    teacher: bool = True


COMPARED = (
    Compared("accuracy_percent", "Accuracy, % (higher is better)"),
    Compared("rouge_l_sampled", "ROUGE-L, answers sampled at T=1 (higher is better)"),
    Compared("rouge_l_greedy", "ROUGE-L, greedy answers (higher is better)"),
    Compared("perplexity", "Held-out perplexity (lower is better)", log=True),
    Compared("top1_percent", "Top-1 agreement with the teacher, % (higher is better)", teacher=False),
    Compared("forward_kl", "Forward KL to the teacher, nats (lower is better)", teacher=False),
    Compared("reverse_kl", "Reverse KL to the teacher, nats (lower is better)", teacher=False),
)

CAPTIONS = {
    "loss": "The objective on the training rows.",
    "divergence": "Forward KL penalises what the student misses, reverse KL what it makes up.",
    "perplexity": "Perplexity of held-out text; the teacher's is the target.",
    "accuracy": "How often the top class is correct. The ring marks the best evaluation.",
    "base_to_new": "Each image is classified among the classes of its own half only, and counted there.",
    "agreement": "How often both models have the same top class.",
    "entropy": "A student above its teacher is too flat and covers too much; below, it is too confident.",
    "coverage": "R_llh: NLL of the student's text under the teacher; R_cvg: of the teacher's text under the student.",
    "writing": "Sequences of the run by origin; those cut off reached max_completion_length before their end.",
    "gradient": "Norm of the gradient before clipping. Near zero while the loss stays high: the student has collapsed.",
}
MOVING = " It changes during this run, so early and late losses are not comparable."


def run_pictures(metrics: Sequence[Record], objective: str) -> list[Picture]:
    """The curves of one run: loss, held-out distances, perplexity or accuracy, agreement, entropies, gradient.

    ``objective`` is its formula or notation; the caption of the loss says so if it changes during the run.
    """
    figures = {
        "loss": plots.loss_figure(metrics),
        "divergence": plots.divergence_figure(metrics),
        "perplexity": plots.perplexity_figure(metrics),
        "accuracy": plots.accuracy_figure(metrics),
        "base_to_new": plots.base_to_new_figure(metrics),
        "agreement": plots.agreement_figure(metrics),
        "entropy": plots.entropy_figure(metrics),
        "coverage": plots.coverage_figure(metrics),
        "writing": plots.writing_figure(metrics),
        "gradient": plots.gradient_figure(metrics),
    }
    changes = any(word in objective for word in ("anneal(", "stages("))
    captions = {**CAPTIONS, "loss": CAPTIONS["loss"] + MOVING} if changes else CAPTIONS
    return pictures_of([(name, figure, captions[name]) for name, figure in figures.items()])


def comparison_pictures(rows: Sequence[Record]) -> list[Picture]:
    """One figure per metric: the same student trained with different objectives, and the teacher."""
    in_percent = {
        "top1_percent": "top1_agreement",
        "accuracy_percent": "accuracy",
        "accuracy_percent_std": "accuracy_std",
    }
    rows = [{**row, **{key: _percent(row.get(share)) for key, share in in_percent.items()}} for row in rows]
    students = [row for row in rows if row["name"] != "teacher"]
    figures = {
        one.key: plots.comparison_figure(rows if one.teacher else students, one.key, one.title, log=one.log)
        for one in COMPARED
    }
    return pictures_of([(f"compare-{key}", figure, "") for key, figure in figures.items()])


def _percent(share: object) -> float | None:
    return 100 * share if is_number(share) else None


def pictures_of(drawn: Sequence[tuple[str, Figure | None, str]]) -> list[Picture]:
    """The figures that were drawn, as SVG with their captions."""
    # Markup: the SVG is ours, and matplotlib escapes every text in it.
    return [
        Picture(Markup(plots.to_svg(figure, name)), caption) for name, figure, caption in drawn if figure is not None
    ]
