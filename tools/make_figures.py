"""Draw the figures of the documentation: ``python tools/make_figures.py [folder]`` (default ``docs/figures``).

Every curve is computed by abkd itself. The files are reproducible byte for byte with the same torch and matplotlib.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from abkd import AlphaBeta, Divergence, ForwardKL, JensenShannon, ReverseKL, TotalVariation, anneal, stages
from abkd.plots import to_svg
from abkd.plots.style import ACCENT, BLUE, FAINT, GREEN, GREY, INK, MUTED, label_ends, styled

ROOT = Path(__file__).resolve().parents[1]
LANGUAGE = (0.2, 0.7)
# (α, β) that the paper's Table 4 uses for ABKD on CIFAR-100.
CIFAR = [(0.6, 0.5), (0.9, 0.2), (0.8, 0.3), (0.7, 0.4), (0.5, 0.5)]


@styled
def plane() -> Figure:
    """The known divergences in the (α, β) plane."""
    figure, (axes,) = _figure("", width=7.0, height=6.6)
    figure.subplots_adjust(left=0.08, right=0.97, top=0.97, bottom=0.08)
    axes.grid(visible=False)
    axes.set(xlim=(-1.45, 2.55), ylim=(-1.45, 2.55), xlabel="α", ylabel="β", aspect="equal")
    axes.add_patch(Rectangle((0, 0), 1, 1, facecolor=FAINT, alpha=0.35, edgecolor="none"))
    axes.plot([-1.3, 2.45], [2.3, -1.45], color=GREY, linewidth=1.3)
    axes.plot([1, 1], [-1.45, 2.45], color=GREY, linewidth=1.3)
    for line in (([0, 0], [-1.45, 2.45]), ([-1.45, 2.45], [0, 0]), ([-1.45, 1.45], [1.45, -1.45])):
        axes.plot(*line, color=FAINT, linewidth=1.0, linestyle=(0, (3, 3)), zorder=0)
    _write(axes, (1.7, -0.56), "α-divergences, α + β = 1", MUTED, ha="center", rotation=-45)
    for at, text in (
        ((0.04, 2.42), "α = 0"),
        ((2.2, 0.08), "β = 0"),
        ((-1.4, 1.2), "α + β = 0"),
        ((0.05, 0.09), "searched"),
    ):
        _write(axes, at, text, GREY)
    _write(axes, (1.05, 2.0), "β-divergences, α = 1", MUTED, rotation=-90)
    for name, point, color, shift in PLACES:
        axes.plot(*point, "o", color=color, markersize=7)
        axes.annotate(name, point, shift, textcoords="offset points", va="center", color=color, fontsize=9.5,
                      ha="right" if shift[0] < 0 else "left")  # fmt: skip
    axes.plot(*zip(*CIFAR, strict=True), "o", color=ACCENT, markersize=4, alpha=0.75)
    _write(axes, (1.06, 0.4), "image classifiers", ACCENT)
    axes.plot(*LANGUAGE, "*", color=ACCENT, markersize=15)
    _write(axes, (0.27, 0.84), "language models", ACCENT)
    return figure


PLACES = [
    ("forward KL", (1, 0), BLUE, (8, -9)),
    ("reverse KL", (0, 1), GREEN, (-8, -9)),
    ("4 · Hellinger²", (0.5, 0.5), INK, (-8, -9)),
    ("½ squared Euclidean", (1, 1), INK, (10, 0)),
    ("½ log-Euclidean", (0, 0), INK, (-8, -9)),
    ("½ Pearson χ²", (2, -1), INK, (-9, -7)),
    ("½ Neyman χ²", (-1, 2), INK, (9, 6)),
    ("Itakura–Saito", (1, -1), INK, (-9, 0)),
]


@styled
def push() -> Figure:
    """The push of each divergence on one class, relative to forward KL."""
    figure, (missed, excess) = _figure("A class the student misses (p = 0.3)", "A class it overrates (p = 0.0001)")
    missed.set(yscale="log", ylim=(1e-7, 20))
    _push_panel(missed, 0.3, torch.logspace(math.log10(0.25), -8, 80, dtype=torch.float64))
    missed.invert_xaxis()
    excess.set_ylim(0, 10)
    _push_panel(excess, 1e-4, torch.logspace(math.log10(1.5e-4), 0, 80, dtype=torch.float64))
    missed.set(xlabel="the student's probability q, falling", ylabel="push, relative to forward KL")
    missed.yaxis.set_major_locator(FixedLocator([1, 1e-2, 1e-4, 1e-6]))
    missed.yaxis.set_minor_locator(NullLocator())
    excess.set(xlabel="the student's probability q, rising")
    return figure


PUSHED = [
    ("forward KL", (1.0, 0.0), BLUE),
    ("(0.6, 0.35)", (0.6, 0.35), GREY),
    ("(0.2, 0.7)", LANGUAGE, ACCENT),
    ("reverse KL", (0.0, 1.0), GREEN),
]


def _push_panel(axes: Axes, p: float, q: Tensor) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 1e-2, 1e-4, 1e-6, 1e-8]))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_power_of_ten))
    ends = []
    for name, (alpha, beta), color in PUSHED:
        ratio = (weight(p, q, alpha, beta) / weight(p, q, 1.0, 0.0)).tolist()
        axes.plot(q.tolist(), ratio, color=color, label=name)
        ends.append((float(q[-1]), ratio[-1], name, color))
    axes.set_xlim(float(q.min()), float(q.max()))
    axes.figure.canvas.draw()
    label_ends(axes, ends)


def weight(p: float, q: Tensor, alpha: float, beta: float) -> Tensor:
    """``q^β (p^α - q^α) / α``, the push on a class before the mean push is subtracted; ``q`` of any shape."""
    gap = math.log(p) - q.log()
    grown = torch.expm1(alpha * gap) / alpha if alpha else gap
    return q ** (alpha + beta) * grown


@styled
def bumps() -> Figure:
    """One bump fitted to two: which divergences cover both (mass-covering), which commit to one (mode-seeking)."""
    figure, (fits, grid) = _figure("One bump fitted to two", "Over the plane: covers or commits")
    x, log_p = two_bumps()
    fits.fill_between(x, log_p.exp(), color=FAINT, linewidth=0, label="teacher")
    fits.grid(visible=False)
    for divergence, name, color, at in (
        (ForwardKL(), "forward KL", BLUE, (-0.25, 0.045)),
        (ReverseKL(), "reverse KL", GREEN, (-0.85, 0.158)),
        (AlphaBeta(*LANGUAGE), "α-β (0.2, 0.7)", ACCENT, (-1.1, 0.185)),
    ):
        _, _, log_q = fit(divergence, x, log_p)
        fits.plot(x, log_q.exp(), color=color, label=name, linestyle="-" if color != GREEN else (0, (4, 2)))
        _write(fits, at, name, color)
    _write(fits, (1.5, 0.085), "teacher", MUTED, ha="center")
    fits.set(ylim=(0, 0.2), yticks=[])
    _verdicts(grid, x, log_p)
    return figure


def _verdicts(axes: Axes, x: Tensor, log_p: Tensor) -> None:
    axes.grid(visible=False)
    for alpha in range(11):
        for beta in range(11):
            point = (alpha / 10, beta / 10)
            _, width, _ = fit(AlphaBeta(*point), x, log_p, steps=24)
            axes.plot(*point, "o", color=BLUE if width > 1 else ACCENT, markersize=6)
    axes.plot(*LANGUAGE, "o", color="none", markeredgecolor=INK, markersize=11)
    axes.set(xlabel="α", ylabel="β", aspect="equal", xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
    _write(axes, (1.1, 0.2), "covers", BLUE)
    _write(axes, (1.1, 0.9), "commits", ACCENT)


def two_bumps() -> tuple[Tensor, Tensor]:
    """A teacher with two bumps over 41 classes on a line: positions ``[41]`` and log-probabilities ``[41]``."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    left, right = (torch.exp(-((x - centre) ** 2) / (2 * 0.35**2)) for centre in (-1.5, 1.5))
    return x, torch.log(left + 0.8 * right + math.exp(-6)).log_softmax(-1)


def fit(divergence: Divergence, x: Tensor, log_p: Tensor, *, steps: int = 140) -> tuple[float, float, Tensor]:
    """The discretised Gaussian nearest to the teacher, by grid search: centre, width, log-probabilities ``[41]``."""
    centres = torch.linspace(-2, 2, steps + 1, dtype=torch.float64)
    widths = torch.linspace(0.2, 3.0, steps + 1, dtype=torch.float64)
    return _best(divergence, x, log_p, centres, widths)


def _best(
    divergence: Divergence, x: Tensor, log_p: Tensor, centres: Tensor, widths: Tensor
) -> tuple[float, float, Tensor]:
    log_q = (-((x - centres[:, None, None]) ** 2) / (2 * widths[:, None] ** 2)).log_softmax(-1)
    row, column = divmod(int(divergence(log_p.expand_as(log_q), log_q).argmin()), len(widths))
    return float(centres[row]), float(widths[column]), log_q[row, column]


@styled
def covering_seeking() -> Figure:
    """The student that each divergence fits, and its R_cvg and R_llh, from reverse to forward KL."""
    figure, (fits, questions) = _figure("Covering, seeking, and between", "R_cvg and R_llh in nats, on α + β = 1")
    x, log_p = two_bumps()
    fits.fill_between(x, log_p.exp(), color=FAINT, linewidth=0)
    _write(fits, (1.5, 0.085), "teacher", MUTED, ha="center")
    for divergence, name, color, at in (
        (AlphaBeta(0.5, 0.5), "forward KL to α = ½", BLUE, (-0.25, 0.045)),
        (TotalVariation(), "total variation", INK, (-0.85, 0.107)),
        (JensenShannon(), "Jensen–Shannon,\nα = 0.4 to reverse KL", GREEN, (-1.0, 0.165)),
    ):
        fits.plot(x, nearest(divergence, x, log_p).exp(), color=color)
        _write(fits, at, name, color)
    fits.grid(visible=False)
    fits.set(ylim=(0, 0.2), yticks=[])
    _questions(questions, x, log_p)
    return figure


def _questions(axes: Axes, x: Tensor, log_p: Tensor) -> None:
    found = [(step / 100, *questioned(AlphaBeta(step / 100, 1 - step / 100), x, log_p)) for step in range(101)]
    switch = next(i for i, (_, r_cvg, _) in enumerate(found) if r_cvg < 5)
    for part in (found[:switch], found[switch:]):
        alpha, r_cvg, r_llh = zip(*part, strict=True)
        axes.plot(alpha, r_cvg, color=INK)
        axes.plot(alpha, r_llh, color=ACCENT)
    for at, divergence in OUTSIDE:
        r_cvg, r_llh = questioned(divergence, x, log_p)
        axes.plot(at, r_cvg, "o", color=INK, markersize=5)
        axes.plot(at, r_llh, "o", color=ACCENT, markersize=5)
    axes.set(xlim=(-0.03, 1.6), ylim=(0, 20), yticks=[0, 5, 10, 15, 20])
    axes.set_xticks([0, 0.5, 1, *(at for at, _ in OUTSIDE)])
    axes.set_xticklabels(["reverse\nKL", "α = ½", "forward\nKL", "TV", "JS"])
    _write(axes, (0.0, 16.6), "R_cvg", INK)
    _write(axes, (0.0, 4.3), "R_llh", ACCENT)
    _write(axes, (found[switch][0] + 0.04, 12.5), f"switches at\nα ≈ {found[switch][0]:.2f}", MUTED)


OUTSIDE = [(1.32, TotalVariation()), (1.54, JensenShannon())]


def nearest(divergence: Divergence, x: Tensor, log_p: Tensor) -> Tensor:
    """The log-probabilities ``[41]`` of :func:`fit`, refined by finer grids around its result."""
    centre, width, log_q = fit(divergence, x, log_p, steps=60)
    for step in (0.07, 0.007):
        around = torch.linspace(-step, step, 21, dtype=torch.float64)
        centre, width, log_q = _best(divergence, x, log_p, centre + around, width + around)
    return log_q


def questioned(divergence: Divergence, x: Tensor, log_p: Tensor) -> tuple[float, float]:
    """R_cvg and R_llh (f-DISTILL, arXiv 2307.15190) of the fitted student, in nats."""
    log_q = nearest(divergence, x, log_p)
    return float(-(log_p.exp() * log_q).sum()), float(-(log_q.exp() * log_p).sum())


@styled
def annealing() -> Figure:
    """The path of an annealed objective through the plane, and α and β over the run."""
    figure, (path, course) = _figure("Through the plane", "Over the run")
    cosine = anneal(ForwardKL(), AlphaBeta(*LANGUAGE), shape="cosine")
    staged = stages((0.5, ForwardKL()), (0.5, AlphaBeta(*LANGUAGE)))
    times = [step / 200 for step in range(201)]
    path.plot(*zip(*[(cosine(t).alpha, cosine(t).beta) for t in times], strict=True), color=ACCENT)
    for t, at in ((0, ": forward KL"), (0.25, ""), (0.5, ""), (0.75, ""), (1, ": (0.2, 0.7)")):
        point = (cosine(t).alpha, cosine(t).beta)
        path.plot(*point, "o", color=ACCENT, markersize=6)
        _write(path, (point[0] + 0.05, point[1] + 0.03), f"{100 * t:.0f} %{at}", MUTED)
    path.set(xlabel="α", ylabel="β", xlim=(0, 1.35), ylim=(-0.05, 0.85))
    for schedule, style in ((cosine, "-"), (staged, (0, (1, 2)))):
        course.plot(times, [schedule(t).alpha for t in times], color=INK, linestyle=style)
        course.plot(times, [schedule(t).beta for t in times], color=ACCENT, linestyle=style)
    course.set(xlabel="share of the run", ylim=(-0.03, 1.05))
    label_ends(course, [(1, 0.2, "α", INK), (1, 0.7, "β", ACCENT)])
    _write(course, (0.03, 0.42), "solid: anneal\ndotted: stages", MUTED)
    return figure


def _figure(*titles: str, width: float = 8.6, height: float = 3.3) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(1, len(titles), squeeze=False)[0]
    figure.subplots_adjust(left=0.08, right=0.87, top=0.87, bottom=0.16, wspace=0.55)
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, x=0)
    return figure, grid


def _write(
    axes: Axes, at: tuple[float, float], text: str, color: str, *, ha: str = "left", rotation: float = 0
) -> None:
    axes.text(*at, text, color=color, fontsize=9, ha=ha, va="center", rotation=rotation)


def _power_of_ten(value: float, _: int) -> str:
    if value == 0 or 0.1 <= value <= 100:
        return f"{value:g}"
    return "10" + "".join("⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".index(sign)] for sign in str(round(math.log10(value))))


FIGURES: dict[str, Callable[[], Figure]] = {
    "plane": plane,
    "push": push,
    "bumps": bumps,
    "covering_seeking": covering_seeking,
    "annealing": annealing,
}


def main(folder: Path) -> None:
    """Write every figure as SVG into ``folder``."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        path = folder / f"{name}.svg"
        path.write_text(to_svg(draw(), name, standalone=True), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures")
