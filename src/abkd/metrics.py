"""The names of the evaluation metrics, and whether higher is better."""

from __future__ import annotations

from abkd import registry

HIGHER = ("accuracy", "agreement", "harmonic_mean")
"""Name endings of metrics for which higher is better; all others are losses or distances: lower is better."""

TOP_K = "_top_k"
"""Name ending of distances over the teacher's top-k classes and one bucket for the rest."""

DISTANCES = ("forward_kl", "reverse_kl", f"forward_kl{TOP_K}", f"reverse_kl{TOP_K}")
_OF_TEACHER = (*DISTANCES, "top1_agreement")


def measured(task: str) -> tuple[str, ...]:
    """The names of the metrics that an evaluation of this task may report (with the prefix ``eval_`` in the log)."""
    return ("loss", *_OF_TEACHER, *registry.tasks()[task].metrics)


def higher_is_better(name: str) -> bool:
    """Whether a higher value of this metric is better; the name may have the prefix ``eval_``."""
    return name.endswith(HIGHER)
