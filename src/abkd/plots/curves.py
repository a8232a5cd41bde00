"""Curves of a run: loss, distances to the teacher, perplexity, accuracy, agreement and entropies by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from abkd.metrics import TOP_K
from abkd.plots.records import Record, having, is_number, series
from abkd.plots.style import ACCENT, BLUE, GREEN, GREY, INK, End, label_ends, number, panel, plain_ticks, styled

SMOOTH_FROM = 8  # fewer points than this are shown as they are


@styled
def loss_figure(records: Sequence[Record]) -> Figure | None:
    """The training loss by step: the logged values in grey, the smoothed curve in the accent colour."""
    steps, losses = series(records, "loss")
    if not steps:
        return None
    figure, axes = _step_panel("Training loss")
    if len(steps) >= SMOOTH_FROM:
        axes.plot(steps, losses, color=GREY, alpha=0.45, linewidth=1.0, label="logged")
        losses = smooth(losses)
    axes.plot(steps, losses, color=ACCENT, label="smoothed", marker="o" if len(steps) < SMOOTH_FROM else "")
    _scale(axes, losses)
    label_ends(axes, [(steps[-1], losses[-1], number(losses[-1]), ACCENT)])
    return figure


@styled
def divergence_figure(records: Sequence[Record]) -> Figure | None:
    """Forward and reverse KL to the teacher on held-out text (nats per token), by step.

    For a top-k teacher they are taken over k+1 buckets, and the title says so.
    """
    end = TOP_K if having(records, f"eval_forward_kl{TOP_K}") else ""
    lines = {"forward KL": (f"eval_forward_kl{end}", BLUE), "reverse KL": (f"eval_reverse_kl{end}", GREEN)}
    over = ", over k+1 buckets" if end else ""
    return _lines_figure(f"Distance to the teacher, held out (nats{over})", records, lines)


@styled
def perplexity_figure(records: Sequence[Record]) -> Figure | None:
    """Held-out perplexity of the student by step; the teacher's is a dashed line."""
    teacher = series(records, "eval_teacher_perplexity")[1]
    lines = {"student": ("eval_perplexity", ACCENT)}
    return _lines_figure("Perplexity, held out", records, lines, reference=teacher[-1] if teacher else None)


@styled
def accuracy_figure(records: Sequence[Record]) -> Figure | None:
    """Held-out accuracy by step (percent), its best evaluation ringed; the teacher's is a dashed line."""
    percent = _percent(records, "eval_accuracy", "eval_teacher_accuracy")
    teacher = series(percent, "eval_teacher_accuracy")[1]
    lines = {"student": ("eval_accuracy", ACCENT)}
    reference = teacher[-1] if teacher else None
    figure = _lines_figure("Accuracy, held out (%)", percent, lines, reference=reference, log=False)
    if figure is not None:
        steps, values = series(percent, "eval_accuracy")
        best = max(range(len(values)), key=values.__getitem__)
        ring = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": INK, "label": "best"}
        figure.axes[0].plot([steps[best]], [values[best]], "o", **ring)
    return figure


@styled
def base_to_new_figure(records: Sequence[Record]) -> Figure | None:
    """Accuracy on base and new classes, and their harmonic mean (percent) by step; the teacher's mean is dashed."""
    lines = {
        "base": ("eval_base_accuracy", BLUE),
        "new": ("eval_new_accuracy", GREEN),
        "mean": ("eval_harmonic_mean", ACCENT),
    }
    percent = _percent(records, *(key for key, _ in lines.values()), "eval_teacher_harmonic_mean")
    teacher = series(percent, "eval_teacher_harmonic_mean")[1]
    reference = teacher[-1] if teacher else None
    return _lines_figure("Accuracy, base and new classes (%)", percent, lines, reference=reference, log=False)


@styled
def agreement_figure(records: Sequence[Record]) -> Figure | None:
    """How often student and teacher have the same top class (percent of held-out predictions), by step."""
    lines = {"student": ("eval_top1_agreement", ACCENT)}
    percent = _percent(records, "eval_top1_agreement")
    return _lines_figure("Top-1 agreement with the teacher, held out (%)", percent, lines, log=False)


@styled
def entropy_figure(records: Sequence[Record]) -> Figure | None:
    """Mean entropy of both models' predictions on the training rows (nats), by step."""
    lines = {"student": ("student_entropy", ACCENT), "teacher": ("teacher_entropy", INK)}
    if not (series(records, "student_entropy")[0] and series(records, "teacher_entropy")[0]):
        return None
    return _lines_figure("Entropy of the predictions (nats)", records, lines, smoothed=True)


@styled
def coverage_figure(records: Sequence[Record]) -> Figure | None:
    """Negative log-likelihood of each model's text under the other, on held-out prompts (nats per token), by step."""
    lines = {"R_llh": ("eval_r_llh", GREEN), "R_cvg": ("eval_r_cvg", BLUE)}
    return _lines_figure("NLL of the other's text, held out (nats)", records, lines)


@styled
def writing_figure(records: Sequence[Record]) -> Figure | None:
    """Shares of the sequences by step: generated by the student, replayed from the buffer, cut off before their end."""
    if not any(record["on_policy_fraction"] > 0 for record in having(records, "on_policy_fraction")):
        return None
    keys = ("on_policy_fraction", "replayed_fraction", "clipped_fraction")
    percent = [{**record, **{key: 100 * record[key] for key in keys if key in record}} for record in records]
    lines = {
        "student": ("on_policy_fraction", ACCENT),
        "replayed": ("replayed_fraction", BLUE),
        "cut off": ("clipped_fraction", GREY),
    }
    return _lines_figure("Origin of the sequences (%)", percent, lines, smoothed=True)


@styled
def gradient_figure(records: Sequence[Record]) -> Figure | None:
    """Norm of the gradient before clipping, by step."""
    return _lines_figure("Gradient norm", records, {"": ("grad_norm", GREY)}, smoothed=True)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the run, shorter at both ends, so that it does not lag behind."""
    reach = max(1, round(len(values) / 20))
    windows = (values[max(0, at - reach) : at + reach + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _lines_figure(
    title: str,
    records: Sequence[Record],
    lines: Mapping[str, tuple[str, str]],
    *,
    smoothed: bool = False,
    reference: float | None = None,
    log: bool = True,
) -> Figure | None:
    drawn = [(label, *series(records, key), colour) for label, (key, colour) in lines.items()]
    drawn = [line for line in drawn if line[1]]
    if not drawn:
        return None
    figure, axes = _step_panel(title)
    ends = [_line(axes, *line, smoothed=smoothed) for line in drawn]
    heights = [value for _, _, values, _ in drawn for value in values]
    if reference is not None:
        span = [drawn[0][1][0], ends[0][0]]
        axes.plot(span, [reference] * 2, color=INK, linestyle=(0, (4, 3)), linewidth=1.1, label="teacher")
        ends.append((span[1], reference, f"teacher {number(reference)}", INK))
        heights.append(reference)
    _scale(axes, heights, log=log)
    label_ends(axes, ends)
    return figure


def _step_panel(title: str) -> tuple[Figure, Axes]:
    figure, axes = panel(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _line(axes: Axes, label: str, steps: list[float], values: list[float], colour: str, *, smoothed: bool) -> End:
    if smoothed and len(steps) >= SMOOTH_FROM:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1.0)
        values = smooth(values)
    axes.plot(steps, values, color=colour, label=label, marker="o" if len(steps) <= 12 else "", markersize=4)
    return steps[-1], values[-1], f"{label} {number(values[-1])}".strip(), colour


def _percent(records: Sequence[Record], *keys: str) -> list[Record]:
    """The records that hold the first of ``keys``, with the shares of all of them in percent."""
    return [
        {"step": record.get("step"), **{key: 100 * record[key] for key in keys if is_number(record.get(key))}}
        for record in having(records, keys[0])
    ]


def _scale(axes: Axes, values: Sequence[float], *, log: bool = True) -> None:
    """A logarithmic axis if values differ by more than a factor of eight, else one from zero if zero is near."""
    if log and min(values) > 0 and max(values) / min(values) > 8:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    elif 0 <= min(values) < 0.6 * max(values):
        axes.set_ylim(bottom=0)
