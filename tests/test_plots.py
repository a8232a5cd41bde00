"""The figures contain the expected curves, and nothing if there is nothing to draw."""

from __future__ import annotations

import importlib.util
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from abkd import AlphaBeta, ForwardKL, ReverseKL, plots
from abkd.metrics import number
from abkd.plots.curves import smooth
from abkd.plots.style import ACCENT, BLUE, GREEN, GREY, colour_of

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [
    {"step": k, "loss": 4 * math.exp(-k / 20) + 1, "grad_norm": 2.0, "student_entropy": 2.5, "teacher_entropy": 1.2}
    | {"on_policy_fraction": 0.5, "clipped_fraction": 0.25}
    for k in range(1, 41)
]
EVAL = [
    {
        "step": k,
        "eval_forward_kl": 3 - k / 40,
        "eval_reverse_kl": 2.9 - k / 40,
        "eval_perplexity": 132.0 - 2.7 * k,
        "eval_teacher_perplexity": 5.0,
        "eval_top1_agreement": 0.3 + k / 200,
        "eval_r_llh": 2.0 - k / 40,
        "eval_r_cvg": 3.0 - k / 40,
    }
    for k in (0, 20, 40)
]
EVENTS = TRAIN + EVAL
ROWS = [
    {"name": "student before", "rouge_l_sampled": 6.2, "perplexity": 132.0},
    {"name": "forward KL", "rouge_l_sampled": 12.5, "rouge_l_sampled_std": 0.3, "perplexity": 18.0},
    {"name": "α-β (0.2, 0.7)", "rouge_l_sampled": 15.1, "rouge_l_sampled_std": 0.8, "perplexity": None},
    {"name": "teacher", "rouge_l_sampled": 16.9, "perplexity": 5.0},
]
CURVES = [
    plots.loss_figure,
    plots.divergence_figure,
    plots.perplexity_figure,
    plots.agreement_figure,
    plots.entropy_figure,
    plots.gradient_figure,
    plots.coverage_figure,
    plots.writing_figure,
]


def labels(figure):
    return [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("draw", CURVES)
def test_nothing_to_draw_gives_no_figure(draw):
    assert draw([]) is None
    assert draw([{"step": 1, "epoch": 0.5}, {"loss": None}]) is None


@pytest.mark.parametrize("draw", CURVES)
def test_numbers_that_are_not_finite_are_left_out(draw):
    broken = [{key: (value if key == "step" else math.nan) for key, value in event.items()} for event in EVENTS]
    assert draw(broken) is None
    assert draw(EVENTS + broken) is not None


def test_loss_shows_what_was_logged_and_its_smoothed_course():
    figure = plots.loss_figure(TRAIN)
    logged, course = figure.axes[0].lines
    assert list(logged.get_ydata()) == [event["loss"] for event in TRAIN]
    assert list(course.get_ydata()) == smooth([event["loss"] for event in TRAIN])
    assert course.get_color() == ACCENT


def test_a_short_run_is_not_smoothed():
    (line,) = plots.loss_figure(TRAIN[:3]).axes[0].lines
    assert len(line.get_ydata()) == 3


def test_lines_carry_their_name_and_last_value():
    figure = plots.divergence_figure(EVENTS)
    assert labels(figure) == ["forward KL", "reverse KL"]
    assert texts(figure) == ["forward KL 2.00", "reverse KL 1.90"]
    places = [
        text.xyann[1] + text.axes.transData.transform(text.xy)[1] * 72 / figure.dpi for text in figure.axes[0].texts
    ]
    assert abs(places[0] - places[1]) >= 11.9  # points: close ends do not overprint


def test_the_teacher_is_a_reference_line_and_a_wide_range_is_logarithmic():
    figure = plots.perplexity_figure(EVENTS)
    assert labels(figure) == ["student", "teacher"]
    assert set(figure.axes[0].lines[1].get_ydata()) == {5.0}
    assert figure.axes[0].get_yscale() == "log"
    assert plots.agreement_figure(EVENTS).axes[0].get_yscale() == "linear"


def test_entropy_needs_both_models():
    assert plots.entropy_figure([{"step": 1, "student_entropy": 2.0}]) is None
    assert labels(plots.entropy_figure(EVENTS)) == ["student", "teacher"]


def test_comparison_has_one_dot_per_student_that_has_the_number():
    figure = plots.comparison_figure(ROWS, "rouge_l_sampled", "ROUGE-L")
    assert labels(figure) == [row["name"] for row in ROWS]
    assert texts(figure) == ["6.20", "12.5", "15.1", "16.9"]
    assert labels(plots.comparison_figure(ROWS, "perplexity", "Perplexity", log=True)) == [
        "student before",
        "forward KL",
        "teacher",
    ]


def test_comparison_of_one_student_is_no_comparison():
    assert plots.comparison_figure([ROWS[0], ROWS[-1]], "perplexity", "Perplexity") is None


def test_every_objective_keeps_its_colour():
    names = ["forward KL", "reverse KL", "α-β (0.2, 0.7)", "forward KL → α-β", "student before"]
    assert [colour_of(name) for name in names] == [BLUE, GREEN, ACCENT, ACCENT, GREY]


def test_smoothing_keeps_length_constants_and_does_not_lag():
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
    ramp = [float(k) for k in range(100)]
    assert smooth(ramp)[20:80] == pytest.approx(ramp[20:80])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (5.034, "5.03"), (132.4, "132"), (0.00123, "0.0012"), (-1.5, "-1.50"), (1.6e8, "1.6e+08")],
)
def test_numbers_are_written_with_three_digits(value, text):
    assert number(value) == text


def test_svg_is_wellformed_repeatable_and_its_ids_are_its_own():
    one, again = (plots.to_svg(plots.perplexity_figure(EVENTS), "ppl") for _ in range(2))
    assert one == again
    ElementTree.fromstring(one)
    assert all(name.startswith("ppl-") for name in re.findall(r'\bid="([^"]+)"', one))
    assert all(name.startswith("ppl-") for name in re.findall(r'(?:url\(#|href="#)([^")]+)', one))
    assert "<title>Perplexity, held out</title>" in one


def test_names_from_outside_cannot_break_the_svg():
    rows = [{"name": "<b>$\\frac{", "x": 1.0}, {"name": "a & b", "x": 2.0}]
    svg = plots.to_svg(plots.comparison_figure(rows, "x", "x"), "odd")
    assert "&lt;b&gt;$\\frac{" in svg
    ElementTree.fromstring(svg)


def test_dark_colours_replace_every_colour_that_a_figure_uses():
    svg = plots.to_svg(plots.divergence_figure(EVENTS), "kl")
    rules = plots.dark_css(".figure")
    for use in set(re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", svg)):
        assert f'[style*="{use}"]' in rules


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "tools" / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["plane", "push", "covering_seeking", "annealing"])
def test_documentation_figures_can_be_drawn(tool, name):
    svg = plots.to_svg(tool.FIGURES[name](), name, standalone=True)
    ElementTree.fromstring(svg)
    assert "prefers-color-scheme" in svg


def test_forward_kl_covers_two_bumps_and_reverse_kl_and_alpha_beta_commit_to_one(tool):
    x, log_p = tool.two_bumps()
    centre, width, _ = tool.fit(ForwardKL(), x, log_p, steps=40)
    assert abs(centre) < 0.5
    assert width > 1.5
    for divergence in (ReverseKL(), AlphaBeta(0.2, 0.7)):
        centre, width, _ = tool.fit(divergence, x, log_p, steps=40)
        assert centre == pytest.approx(-1.5)
        assert width < 0.5


@pytest.mark.parametrize("page", ["method.md", "performance.md"])
def test_every_figure_of_the_guides_exists(page):
    guide = (ROOT / "docs" / page).read_text(encoding="utf-8")
    shown = re.findall(r"\]\((figures/[^)]+)\)", guide)
    assert shown
    assert all((ROOT / "docs" / path).is_file() for path in shown)
