"""The figures of the page, as SVG, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from abkd import plots
from abkd.metrics import METRICS, Metric
from abkd.plots.records import is_number
from abkd.report.files import Record
from abkd.report.table import by_rank


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure inside the page and its caption."""

    svg: Markup
    caption: str


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
    compared = [metric for metric in by_rank(METRICS.values()) if metric.shown_from and metric.better]
    return pictures_of([(f"compare-{metric.name}", _comparison(rows, metric), "") for metric in compared])


def _comparison(rows: Sequence[Record], metric: Metric) -> Figure | None:
    """One metric in the unit in which it is shown; with the teacher's value, unless it is the same for all teachers."""
    keys = (metric.name, f"{metric.name}_std")
    shown = [
        {"name": row["name"], **{key: metric.scale * row[key] for key in keys if is_number(row.get(key))}}
        for row in rows
        if metric.ideal is None or row["name"] != "teacher"
    ]
    unit = f", {metric.unit}" if metric.unit else ""
    title = f"{metric.full_name}{unit} ({metric.better} is better)"
    return plots.comparison_figure(shown, metric.name, title, log=metric.logarithmic)


def pictures_of(drawn: Sequence[tuple[str, Figure | None, str]]) -> list[Picture]:
    """The figures that were drawn, as SVG with their captions."""
    # Markup: the SVG is ours, and matplotlib escapes every text in it.
    return [
        Picture(Markup(plots.to_svg(figure, name)), caption) for name, figure, caption in drawn if figure is not None
    ]
