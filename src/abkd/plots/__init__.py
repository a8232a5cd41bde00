"""Figures of runs, drawn from the records of ``metrics.jsonl``, ``demo.json`` and ``sweep.json``, without torch.

Every ``*_figure`` takes a list of dicts and returns a :class:`matplotlib.figure.Figure` with one panel, or ``None``
when the records hold nothing to draw. Lines are labelled at their ends instead of in a legend. :func:`to_svg` turns a
figure into text whose colours follow the reader's light or dark setting.
"""

from abkd.plots.comparison import comparison_figure
from abkd.plots.curves import (
    accuracy_figure,
    agreement_figure,
    base_to_new_figure,
    coverage_figure,
    divergence_figure,
    entropy_figure,
    gradient_figure,
    loss_figure,
    perplexity_figure,
    writing_figure,
)
from abkd.plots.seeds import seeds_figure
from abkd.plots.svg import dark_css, to_svg

__all__ = [
    "accuracy_figure",
    "agreement_figure",
    "base_to_new_figure",
    "comparison_figure",
    "coverage_figure",
    "dark_css",
    "divergence_figure",
    "entropy_figure",
    "gradient_figure",
    "loss_figure",
    "perplexity_figure",
    "seeds_figure",
    "to_svg",
    "writing_figure",
]
