"""Reports, figures and results of runs on images, and of several runs, from their records only."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from abkd import plots
from abkd.report import render_report
from abkd.report.results import headlines, result_of, sentences
from abkd.report.sweep import notes_of, summary_of, sweep_table

ACCURACIES = [(0, 0.10), (20, 0.90), (40, 0.95), (60, 0.93)]
IMAGES = [
    {
        "step": step,
        "epoch": step / 20,
        "eval_accuracy": accuracy,
        "eval_teacher_accuracy": 0.97,
        "eval_cross_entropy": 1 - accuracy,
        "eval_forward_kl": 2 - accuracy,
        "eval_loss": 1.0,
        "eval_runtime": 0.1,
    }
    for step, accuracy in ACCURACIES
]
HALVES = [
    {"step": step, "epoch": step / 20, "eval_base_accuracy": base, "eval_new_accuracy": new,
     "eval_harmonic_mean": 2 * base * new / (base + new), "eval_teacher_base_accuracy": 0.9,
     "eval_teacher_new_accuracy": 0.8, "eval_teacher_harmonic_mean": 0.847}
    for step, base, new in ((0, 0.5, 0.5), (20, 0.8, 0.7), (40, 0.85, 0.6))
]  # fmt: skip
CLIP = "zero-shot-image-classification"


def page_of(tmp_path, metrics, recipe="") -> str:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in metrics))
    (tmp_path / "recipe.yaml").write_text(recipe or "task: image-classification\n")
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>", "", render_report(tmp_path), flags=re.DOTALL))


# ---- results


def test_last_and_best_of_every_number_in_its_own_direction():
    result = result_of(IMAGES)
    assert result["last"]["accuracy"] == {"value": 0.93, "step": 60, "epoch": 3.0}
    assert result["best"]["accuracy"] == {"value": 0.95, "step": 40, "epoch": 2.0}
    assert result["best"]["forward_kl"] == {"value": 2 - 0.95, "step": 40, "epoch": 2.0}
    assert result["best"]["loss"]["step"] == 20  # the first of equals
    assert result["teacher"] == {"accuracy": 0.97}
    assert "runtime" not in result["last"]
    assert sentences(result) == ["accuracy: last 93.00 % (epoch 3), best 95.00 % (epoch 2), teacher 97.00 %"]


def test_the_student_before_training_is_best_only_where_it_is_all_there_is():
    worse = [{**IMAGES[1], "eval_accuracy": 0.05}]
    assert result_of([IMAGES[0], *worse])["best"]["accuracy"]["value"] == 0.05
    assert result_of(IMAGES[:1])["best"]["accuracy"]["value"] == 0.10
    assert result_of([]) == {"last": {}, "best": {}, "teacher": {}}
    assert sentences(result_of([])) == []


@pytest.mark.parametrize("sick", [float("nan"), float("inf"), None])
def test_a_last_number_that_is_not_finite_says_so(sick):
    """The metric from before training is not used instead."""
    result = result_of([IMAGES[0], {**IMAGES[1], "eval_accuracy": sick}])
    assert result["last"]["accuracy"] == {"value": None, "step": 20, "epoch": 1.0}
    assert "accuracy" not in result["best"]
    assert sentences(result) == ["accuracy: last not finite (epoch 1), teacher 97.00 %"]


@pytest.mark.parametrize(
    ("measured", "first"),
    [
        ({"accuracy", "cross_entropy", "forward_kl"}, ["accuracy"]),
        ({"base_accuracy", "new_accuracy", "harmonic_mean", "forward_kl"},
         ["base_accuracy", "new_accuracy", "harmonic_mean"]),
        ({"new_accuracy", "forward_kl"}, ["new_accuracy"]),
        ({"perplexity", "forward_kl", "top1_agreement"}, ["perplexity", "forward_kl"]),
        ({"perplexity"}, ["perplexity"]),
        ({"forward_kl", "reverse_kl", "top1_agreement"}, ["forward_kl", "top1_agreement"]),
        (set(), []),
    ],
)  # fmt: skip
def test_every_kind_of_run_is_told_by_its_own_numbers(measured, first):
    assert [metric.name for metric in headlines([{"last": dict.fromkeys(measured)}])] == first


# ---- one run


def test_a_run_on_images_shows_accuracy_and_no_perplexity(tmp_path):
    page = page_of(tmp_path, IMAGES)
    assert "Accuracy: last 93.00 % (epoch 3), best 95.00 % (epoch 2), teacher 97.00 %." in page
    assert "selected on the evaluation set itself" in page
    assert "Accuracy, held out (%)" in page
    assert "erplexity" not in page
    assert "95 % of the way to the teacher’s 97.00" in page  # from 10 to 93, of 97
    assert "ransductive" not in page


@pytest.mark.parametrize(("seen", "says"), [("all", "Transductive: images"), ("base", "Not transductive")])
def test_base_to_new_says_whose_images_were_seen(tmp_path, seen, says):
    page = page_of(tmp_path, HALVES, f"task: {CLIP}\nunlabelled_classes: {seen}\n")
    assert says in page
    assert "Harmonic mean: last 70.34 % (epoch 2), best 74.67 % (epoch 1), teacher 84.70 %" in page.replace(
        "; h", "; H"
    )
    assert "Accuracy, base and new classes (%)" in page


def test_accuracy_is_drawn_in_per_cent_with_its_best_ringed_and_never_on_a_logarithm():
    axes = plots.accuracy_figure(IMAGES).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["student"].get_ydata()) == pytest.approx([100 * accuracy for _, accuracy in ACCURACIES])
    assert [list(lines["best"].get_xdata()), list(lines["best"].get_ydata())] == [[40], [95]]
    assert list(lines["teacher"].get_ydata()) == pytest.approx([97, 97])
    assert axes.get_yscale() == "linear"
    assert plots.accuracy_figure(HALVES) is None
    assert plots.base_to_new_figure(IMAGES) is None
    halves = {line.get_label() for line in plots.base_to_new_figure(HALVES).axes[0].lines}
    assert halves == {"base", "new", "mean", "teacher"}


# ---- several runs


def sweep_of(*settings: tuple[str, list[list[dict[str, Any]]]], **more: Any) -> dict[str, Any]:
    found = []
    for name, courses in settings:
        runs: list[dict[str, Any]] = [
            {"seed": seed, "directory": f"{name}/seed-{seed}"} | ({"result": result_of(course)} if course else {})
            for seed, course in enumerate(courses)
        ]
        found.append({"name": name, "runs": runs, "summary": summary_of(runs)})
    seeds = list(range(max(len(courses) for _, courses in settings)))
    known = {"seeds": seeds, "grid": {}, "task": CLIP, "unlabelled_classes": ["all"]}
    return {**known, "settings": found, **more}


def test_means_are_of_what_is_finished_and_a_single_run_has_no_spread():
    table = sweep_table(sweep_of(("one", [HALVES, []]), ("two", [HALVES[:2], HALVES[:2]])))
    assert [column.heading for column in table.columns] == ["%, last", "%, last", "%, last", "%, best"]
    cells = {row.name: [(cell.text, cell.spread, cell.best) for cell in row.cells] for row in table.rows}
    assert cells["one (1 of 2 seeds)"][0] == ("85.00", "", True)
    assert cells["two"][0] == ("80.00", "± 0.00", False)
    assert [cell[2] for cell in cells["two"]] == [False, True, True, True]  # the best are equal: both are
    assert [cell[0] for cell in cells["teacher"]] == ["90.00", "80.00", "84.70", ""]


def test_settings_with_different_teachers_have_a_line_for_each():
    weak = [{**event, "eval_teacher_base_accuracy": 0.5} for event in HALVES]
    names = [row.name for row in sweep_table(sweep_of(("one", [HALVES]), ("two", [weak]))).rows]
    assert names == ["one", "two", "teacher of one", "teacher of two"]


def test_what_must_be_known_about_the_numbers_is_said():
    notes = " ".join(notes_of(sweep_of(("one", [HALVES, HALVES]))))
    assert all(words in notes for words in ("slightly optimistic", "n - 1", "Transductive"))
    notes = " ".join(notes_of(sweep_of(("one", [HALVES]), task="image-classification")))
    assert not any(words in notes for words in ("n - 1", "holds out", "ransductive"))
    nothing = sweep_of(("one", [[]]), task="text-generation")
    assert sweep_table(nothing) is None
    assert notes_of(nothing) == ["There was no evaluation set, so there are no metrics to compare."]


def test_a_page_about_several_runs_draws_each_seed(tmp_path):
    sweep = sweep_of(("a & b", [HALVES, HALVES[:2]]), ("c", [[]]), grid=None)
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    page = page_of(tmp_path, [], f"task: {CLIP}\n")
    assert "2 settings · 2 of 4 runs are finished" not in page
    assert "2 settings · 2 of 3 runs are finished" in page
    assert "a &amp; b" in page
    assert page.count("<figure>") == 3
    assert "not finished" in page
    assert "--grid" not in page


def test_every_seed_is_a_point_and_the_teacher_is_dashed_in_every_row():
    rows = [{"name": "α-β", "values": [1.0, 3.0]}, {"name": "other", "values": [2.0]}, {"name": "none", "values": []}]
    axes = plots.seeds_figure(rows, "Accuracy (%)", teacher=4.0).axes[0]
    points = [list(line.get_xdata()) for line in axes.lines if line.get_label() in ("α-β", "other")]
    assert points == [[1.0, 3.0], [2.0]]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "mean"] == [2.0, 2.0]
    assert sum(line.get_label() == "teacher" for line in axes.lines) == 2
    assert plots.seeds_figure(rows[2:], "Accuracy (%)") is None
