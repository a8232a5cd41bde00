"""The table of metrics: every number that a run logs or reports, its unit, and which direction is better.

A new metric is one entry of :data:`METRICS`, and the code that computes it: logs, ``metric_for_best_model``, figures,
tables and sweeps read the rest from here. A task may define metrics of its own instead
(:attr:`abkd.tasks.Task.metrics`); :mod:`abkd.registry` finds both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

HELD_OUT, OF_TEACHER = "eval_", "eval_teacher_"
"""Prefixes of held-out metrics in the log: of the student's value, and of the teacher's."""

TOP_K = "_top_k"
"""Name ending of distances over the teacher's top-k classes and one bucket for the rest."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that runs report.

    Attributes:
        name: its name in logs and files, where held-out values have the prefix ``eval_``.
        label, title: its name for people; ``title`` is longer, for places without a table around it.
        unit: the unit of the value as it is shown.
        better: the direction in which it is better; empty if there is none.
        note: what distinguishes it from others with the same label.
        scale, decimals: it is shown times ``scale`` with so many decimals; None: with three significant digits.
        logarithmic: whether ratios of its values are what matters, as for perplexities.
        ideal: the value of a perfect copy of the teacher, where that does not depend on the teacher.
        rank: its importance in a run's results, 1 first; None: never a headline.
        companions: metrics that are shown beside it where it is the headline.
        part_of: the metric that combines it with others: its own best value may be that of another checkpoint.
        shown_from: how many models must have it to be worth a column in the report's table; 0: never a column.
        progress: whether the progress bar shows it.
        in_words: whether the report tells its last and best value in a sentence too.
        of_every_task: whether an evaluation of any task reports it.
        column: the per-row column whose mean it is in the training log; empty if it is not logged there.
        needs_teacher: whether it is omitted in steps without a teacher.
        requires: the setting that must be above 0 for it to be computed.
        combined: how a source combines the values of its parts: ``weighted`` by the sequences drawn from each,
            ``averaged`` or ``summed``.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    _: KW_ONLY
    note: str = ""
    title: str = ""
    scale: float = 1.0
    decimals: int | None = None
    logarithmic: bool = False
    ideal: float | None = None
    rank: int | None = None
    companions: tuple[str, ...] = ()
    part_of: str = ""
    shown_from: int = 0
    progress: bool = False
    in_words: bool = False
    of_every_task: bool = False
    column: str = ""
    needs_teacher: bool = False
    requires: str = ""
    combined: Literal["weighted", "averaged", "summed"] = "weighted"

    @property
    def full_name(self) -> str:
        """The title, or else the label."""
        return self.title or self.label

    @property
    def heading(self) -> str:
        """Unit and note, for the line below the label."""
        return ", ".join(filter(None, (self.unit, self.note)))

    def text(self, value: float) -> str:
        """A value or a standard deviation as it is shown, without its unit."""
        shown = self.scale * value
        return number(shown) if self.decimals is None else f"{shown:,.{self.decimals}f}"

    def improves(self, value: float, other: float) -> bool:
        """Whether ``value`` is better than ``other``; never, if no direction is."""
        return value > other if self.better == "higher" else self.better == "lower" and value < other


def number(value: float) -> str:
    """Three significant digits, thousands separated, no exponent below a million."""
    if abs(value) >= 1e6:
        return f"{value:.2g}"
    digits = 2 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, min(digits, 4))}f}"


def in_sentence(name: str) -> str:
    """A label as it is written within a sentence: ``perplexity``, but ``ROUGE-L``."""
    return name if name[:2].isupper() else f"{name[:1].lower()}{name[1:]}"


def metric_of(key: str) -> Metric | None:
    """The metric behind a key of the log: ``teacher_entropy``, ``eval_accuracy``, ``eval_teacher_accuracy``."""
    for prefix in (OF_TEACHER, HELD_OUT):
        if key.startswith(prefix):
            return METRICS.get(key.removeprefix(prefix))
    return METRICS.get(key)


_fraction = partial(Metric, unit="%", scale=100.0, decimals=1)
_accuracy = partial(Metric, unit="%", better="higher", scale=100.0, decimals=2, shown_from=1, in_words=True)
_distance = partial(
    Metric, unit="nats", better="lower", ideal=0.0, shown_from=1, of_every_task=True, companions=("top1_agreement",)
)
_rouge = partial(Metric, label="ROUGE-L", better="higher", decimals=1, shown_from=1)
_of_rows = partial(Metric, unit="nats")
_coverage = partial(Metric, unit="nats", better="lower", requires="eval_samples")

_TABLE = (
    # the objective, on training and held-out rows
    Metric("loss", "Loss", better="lower", progress=True, of_every_task=True),
    # against labels, on held-out rows
    _accuracy("base_accuracy", "Base accuracy", rank=1, part_of="harmonic_mean"),
    _accuracy("new_accuracy", "New accuracy", rank=1, part_of="harmonic_mean"),
    _accuracy("harmonic_mean", "Harmonic mean", rank=1, progress=True),
    _accuracy("accuracy", "Accuracy", rank=2, progress=True),
    # means over rows: of training, of held-out rows
    _of_rows("divergence", "Divergence", column="divergence", needs_teacher=True),
    _of_rows("cross_entropy", "Cross-entropy", better="lower", column="cross_entropy", shown_from=1),
    _of_rows("student_entropy", "Entropy of the student", column="student_entropy"),
    _of_rows("teacher_entropy", "Entropy of the teacher", column="teacher_entropy", needs_teacher=True),
    Metric("perplexity", "Perplexity", better="lower", note="held out", title="Held-out perplexity", logarithmic=True,
           rank=4, companions=("forward_kl", f"forward_kl{TOP_K}"), shown_from=1, progress=True),
    _distance("forward_kl", "Forward KL", title="Forward KL to the teacher", rank=5),
    _distance("reverse_kl", "Reverse KL", title="Reverse KL to the teacher", rank=8),
    _distance(f"forward_kl{TOP_K}", "Forward KL", title="Forward KL to the teacher", note="k+1 buckets", rank=6),
    _distance(f"reverse_kl{TOP_K}", "Reverse KL", title="Reverse KL to the teacher", note="k+1 buckets", rank=9),
    _fraction("top1_agreement", "Top-1 agreement", better="higher", title="Top-1 agreement with the teacher", ideal=1.0,
              rank=7, shown_from=1, of_every_task=True, column="agreement", needs_teacher=True),
    # of generated text
    _coverage("r_llh", "R_llh", title="NLL of the student's text under the teacher"),
    _coverage("r_cvg", "R_cvg", title="NLL of the teacher's text under the student"),
    _rouge("rouge_l_greedy", note="greedy", title="ROUGE-L of greedy answers"),
    _rouge("rouge_l_sampled", note="sampled, T=1", title="ROUGE-L of sampled answers", rank=3),
    # of the sequences that a source drew
    _fraction("on_policy_fraction", "Generated by the student"),
    _fraction("replayed_fraction", "Replayed"),
    _fraction("clipped_fraction", "Cut off"),
    _fraction("mix_share", "Adaptive share of the mix", combined="averaged"),
    Metric("completion_length", "Length of the completions", "tokens"),
    Metric("empty_completions", "Empty completions", combined="summed"),
    Metric("replay_size", "Sequences in the buffer", combined="summed"),
    Metric("generated_tokens_per_second", "Generation", "tokens/s", decimals=0),
    # of the teacher, and of models
    _fraction("covered_mass", "Probability of the cached classes"),
    Metric("parameters", "Parameters", "M", scale=1e-6, decimals=1, shown_from=1),
    Metric("tokens_per_second", "Speed", "tokens/s", decimals=0, shown_from=1),
    Metric("train_seconds", "Training", "s", decimals=0, shown_from=2),
)  # fmt: skip

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _TABLE})
"""The metrics by name, in the order in which logs and tables show them."""

LOGGED = tuple(metric for metric in _TABLE if metric.column)
"""The means over rows in the training log."""
