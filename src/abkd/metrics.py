"""Held-out metrics by name, and which way each is better."""

from __future__ import annotations

from abkd import registry

HIGHER = ("accuracy", "agreement", "harmonic_mean")
"""How the names end of what should be high; everything else is a distance or a surprise, and should be low."""

TOP_K = "_top_k"
"""How a distance ends that is taken over the teacher's k likeliest classes and one bucket for the rest."""

DISTANCES = ("forward_kl", "reverse_kl", f"forward_kl{TOP_K}", f"reverse_kl{TOP_K}")
_OF_TEACHER = (*DISTANCES, "top1_agreement")


def measured(task: str) -> tuple[str, ...]:
    """The names of the metrics that an evaluation of this task may give (``eval_`` precedes them in the log)."""
    return ("loss", *_OF_TEACHER, *registry.tasks()[task].metrics)


def higher_is_better(name: str) -> bool:
    """Whether more of this is better; ``eval_`` may stand before the name."""
    return name.endswith(HIGHER)
