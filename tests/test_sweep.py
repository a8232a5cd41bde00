"""Several runs in one command: errors beforehand, the resulting files, and resumption after a kill."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from abkd.errors import ConfigError, Interrupted, OutputDirError
from abkd.recipe import Recipe
from abkd.report.sweep import sweep_table
from abkd.run import RESULT_FILE, distill
from abkd.sweep import SWEEP_FILE, _run, plan, read_seeds, settings_of, sweep, sweep_settings
from training_parts import gap, gpt2, llama, rows, save_models, write_rows

GRID = {"divergence": ["ForwardKL()", "AlphaBeta(0.8, 0.3)"]}
SETTINGS = ["divergence=ForwardKL()", "divergence=AlphaBeta(alpha=0.8, beta=0.3)"]
PLACES = ["divergence=ForwardKL", "divergence=AlphaBeta_alpha=0.8_beta=0.3"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A student with dropout, so that seeds differ; a teacher, and data."""
    directory = tmp_path_factory.mktemp("shelf")
    save_models(directory, student=gpt2(0), teacher=llama(7, width=48, layers=2, sharpness=6.0))
    write_rows(directory / "data.jsonl", rows(16))
    write_rows(directory / "held_out.jsonl", rows(20)[16:])
    return directory


def values(shelf: Path, output: Path, **more: Any) -> dict[str, Any]:
    found = {
        "model_name_or_path": str(shelf / "student"),
        "teacher_model_name_or_path": str(shelf / "teacher"),
        "train_file": str(shelf / "data.jsonl"),
        "eval_file": str(shelf / "held_out.jsonl"),
        "output_dir": str(output),
        "use_cpu": True,
        "learning_rate": 0.003,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "max_length": 64,
        "logging_steps": 1,
        "save_total_limit": 1,
        "dataloader_pin_memory": False,
    }
    return {**found, **more}


def recipe(shelf: Path, output: Path, **more: Any) -> Recipe:
    return Recipe.from_dict(values(shelf, output, **more))


@pytest.fixture(scope="module")
def undisturbed(shelf, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("undisturbed") / "sweep"
    return sweep(recipe(shelf, output), [1, 2], GRID), output


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = ("_runtime", "_per_second")
    return [{k: v for k, v in line.items() if not k.endswith(timing)} for line in lines if "train_runtime" not in line]


# ---- output files


def test_every_run_is_a_run_of_its_own(undisturbed, shelf, tmp_path):
    """A sweep equals the single commands, whatever ran in the process before."""
    found, output = undisturbed
    assert [one["name"] for one in found["settings"]] == SETTINGS
    assert [run["directory"] for one in found["settings"] for run in one["runs"]] == [
        f"{place}/seed-{seed}" for place in PLACES for seed in (1, 2)
    ]
    run = output / PLACES[1] / "seed-2"
    distill(recipe(shelf, tmp_path / "alone", divergence="AlphaBeta(0.8, 0.3)", seed=2))
    places = (tmp_path / "alone", run, output / PLACES[1] / "seed-1")
    alone, same, other = (load_file(place / "model.safetensors") for place in places)
    assert gap(alone, same) == 0.0
    assert gap(alone, other) > 1e-4
    assert records(run) == records(tmp_path / "alone")
    assert Recipe.from_yaml(run / "recipe.yaml").config["seed"] == 2
    assert (run / "report.html").is_file()


def test_means_and_deviations_are_those_of_the_runs(undisturbed):
    found, output = undisturbed
    for one, place in zip(found["settings"], PLACES, strict=True):
        course = [records(output / place / f"seed-{seed}") for seed in (1, 2)]
        evaluations = [[r["eval_forward_kl"] for r in each if "eval_forward_kl" in r] for each in course]
        assert all(len(each) == 3 for each in evaluations)  # before, and after each epoch
        expected = {"last": [each[-1] for each in evaluations], "best": [min(each[1:]) for each in evaluations]}
        for kind, numbers in expected.items():
            summary = one["summary"]["forward_kl"][kind]
            assert summary["values"] == numbers
            assert summary["mean"] == pytest.approx(statistics.mean(numbers), abs=1e-12)
            assert summary["std"] == pytest.approx(abs(numbers[0] - numbers[1]) / math.sqrt(2), abs=1e-12)
        assert one["summary"]["perplexity"]["teacher"]["std"] == 0.0
    assert json.loads((output / SWEEP_FILE).read_text()) == found


def test_a_page_and_a_table_tell_it(undisturbed):
    found, output = undisturbed
    page = (output / "report.html").read_text(encoding="utf-8")
    said = ["teacher distilled into student", "4 runs", "seeds 1, 2", *SETTINGS, "± ", "n - 1", "seeds-perplexity"]
    assert [words for words in said if words not in page] == []
    table = sweep_table(found)
    assert [(column.label, column.heading) for column in table.columns] == [
        ("Perplexity", "last"), ("Perplexity", "best"), ("Forward KL", "nats, last"), ("Forward KL", "nats, best"),
    ]  # fmt: skip
    assert [row.name for row in table.rows] == [*SETTINGS, "teacher"]
    means = [one["summary"]["perplexity"]["last"]["mean"] for one in found["settings"]]
    assert [row.cells[0].best for row in table.rows] == [means[0] < means[1], means[1] < means[0], False]
    assert [row.cells[1].text for row in table.rows][2] == ""


# ---- resuming


@pytest.fixture
def begun(monkeypatch) -> list[tuple[str, bool]]:
    """Records the runs that are executed from here on, and whether they are resumed."""
    seen: list[tuple[str, bool]] = []

    def watched(one: Recipe, resume: bool = False, **options: Any) -> Any:
        seen.append((str(Path(*Path(one.output_dir).parts[-2:])), resume))
        return distill(one, resume=resume, **options)

    monkeypatch.setattr(_run, "distill", watched)
    return seen


def test_a_killed_sweep_goes_on_as_if_nothing_had_happened(undisturbed, shelf, tmp_path, begun):
    """By SIGKILL in the second epoch of the third run."""
    killer = (
        "import os, signal; from abkd.trainer._callbacks import MetricsFile as M; log = M.on_log\n"
        "def on_log(self, args, state, control, **e):\n"
        f"    log(self, args, state, control, **e); there = {PLACES[0] + '/seed-2'!r} in args.output_dir\n"
        "    if there and state.global_step == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "M.on_log = on_log; from abkd.cli import main; main()"
    )
    output = tmp_path / "sweep"
    flags = [word for name, value in values(shelf, output).items() for word in (f"--{name}", str(value))]
    own = ["--seeds", "1,2", "--grid", "{divergence: ['ForwardKL()', 'AlphaBeta(0.8, 0.3)']}"]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", killer, "distill", *flags, *own],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [sum("result" in run for run in one["runs"]) for one in read(output)["settings"]] == [1, 1]

    found = sweep(recipe(shelf, output), [1, 2], GRID, resume=True)
    assert begun == [(f"{PLACES[0]}/seed-2", True), (f"{PLACES[1]}/seed-2", False)]
    expected, where = undisturbed
    assert found == expected
    for name in (f"{place}/seed-{seed}" for place in PLACES for seed in (1, 2)):
        one, other = (load_file(each / name / "model.safetensors") for each in (where, output))
        assert gap(one, other) == 0.0
        assert records(where / name) == records(output / name)
        assert (where / name / RESULT_FILE).read_bytes() == (output / name / RESULT_FILE).read_bytes()


@pytest.fixture
def copy(undisturbed, shelf, tmp_path) -> tuple[Path, Recipe]:
    output = tmp_path / "sweep"
    shutil.copytree(undisturbed[1], output)
    return output, recipe(shelf, output)


def test_only_what_is_not_finished_is_done_and_seeds_may_be_added(undisturbed, copy, begun):
    """A changed result is invalid; a run without a checkpoint starts over; another seed is a new run."""
    output, asked = copy
    changed = output / PLACES[0] / "seed-1" / RESULT_FILE
    changed.write_text(changed.read_text().replace('"value": ', '"value": 1'))
    emptied = output / PLACES[1] / "seed-1"
    (emptied / RESULT_FILE).unlink()
    for checkpoint in emptied.glob("checkpoint-*"):
        (checkpoint / "abkd_manifest.json").unlink()
    found = sweep(asked, [1, 2, 3], {"divergence": GRID["divergence"]}, resume=True)
    assert begun == [
        (f"{PLACES[0]}/seed-1", True),
        (f"{PLACES[1]}/seed-1", True),
        (f"{PLACES[0]}/seed-3", False),
        (f"{PLACES[1]}/seed-3", False),
    ]
    for one, before in zip(found["settings"], undisturbed[0]["settings"], strict=True):
        assert one["runs"][:2] == before["runs"]
        assert len(one["summary"]["perplexity"]["last"]["values"]) == 3


def test_a_setting_keeps_its_folder_whatever_else_is_asked_for(shelf, tmp_path, begun):
    """Even if another setting's name gives the same folder, and if the keys of the grid are in another order."""
    for name in ("a b", "a_b"):
        shutil.copy(shelf / "data.jsonl", tmp_path / f"{name}.jsonl")
    one, other = (str(tmp_path / f"{name}.jsonl") for name in ("a b", "a_b"))
    asked = recipe(shelf, tmp_path / "out", max_steps=1, eval_strategy="no", eval_file=None, eval_fraction=0.0)
    first = sweep(asked, [1], {"train_file": [one], "weight_decay": [0.1]})
    [place] = {Path(directory).parent for directory, _ in begun}
    for grid in (
        {"weight_decay": [0.1], "train_file": [other]},
        {"weight_decay": [0.1], "train_file": [other, one]},
        {"train_file": [one, other], "weight_decay": [0.1]},
    ):
        found = sweep(asked, [1], grid, resume=True)
    assert len(begun) == 2
    assert found["settings"][0] == first["settings"][0]
    assert found["settings"][0]["runs"][0]["directory"] == f"{place}/seed-1"
    assert all("result" in run for each in found["settings"] for run in each["runs"])
    (tmp_path / "out" / SWEEP_FILE).write_text('{"places": [{"directory": "../x", "changes": {}}, 3]}')
    assert _run._known_places(tmp_path / "out") == []


def test_ctrl_c_leaves_what_is_finished(shelf, tmp_path, monkeypatch):
    def interrupted(one: Recipe, resume: bool = False, **options: Any) -> Any:
        if one.config["seed"] == 2:
            raise Interrupted("stopped")
        return distill(one, resume=resume, **options)

    monkeypatch.setattr(_run, "distill", interrupted)
    with pytest.raises(Interrupted):
        sweep(recipe(shelf, tmp_path / "out", max_steps=1), [1, 2])
    runs = read(tmp_path / "out")["settings"][0]["runs"]
    assert [(run["directory"], "result" in run) for run in runs] == [("seed-1", True), ("seed-2", False)]
    assert "1 of 2 runs are finished" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_run_that_does_not_stay_finite_is_noted_and_the_others_go_on(shelf, tmp_path, begun):
    asked = recipe(shelf, tmp_path / "out", max_steps=3)
    grid = {"learning_rate": [1e30, 0.003]}
    found = sweep(asked, [5], grid)
    assert [run.keys() - {"seed", "directory"} for one in found["settings"] for run in one["runs"]] == [
        {"failed"},
        {"result"},
    ]
    assert [row.name for row in sweep_table(found).rows] == [
        "learning_rate=1e+30 (0 of 1 seeds)",
        "learning_rate=0.003",
        "teacher",
    ]
    assert sweep(asked, [5], grid, resume=True) == found
    assert len(begun) == 2  # the result would be the same


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / SWEEP_FILE).read_text())


# ---- what is refused before a model is loaded


@pytest.mark.parametrize(
    ("seeds", "grid", "says"),
    [
        ([1, 2, 1], {}, "seeds: 1 appears twice"),
        ([], {}, "seeds must be integers"),
        ([-1], {}, "seeds must be integers"),
        ([2**32], {}, "seeds must be integers"),
        ([True], {}, "seeds must be integers"),
        (None, {"kd_wait": [1]}, "did you mean kd_weight"),
        (None, {"seed": [1, 2]}, "--seeds 1,2,3"),
        (None, {"output_dir": ["a", "b"]}, "output_dir cannot be varied"),
        (None, {"kd_weight": []}, "kd_weight needs a list of values"),
        (None, {"kd_weight": 3}, "kd_weight needs a list of values"),
        (None, {"kd_weight": [1, -2]}, r"kd_weight=-2: kd_weight must be >= 0"),
        (None, {"divergence": ["ForwardKL()", "ForwardK()"]}, "did you mean ForwardKL"),
        (None, {"divergence": ["AlphaBeta(0.8, 0.3)", "AlphaBeta(alpha=0.8,beta=0.3)"]}, "appears twice"),
        (None, {"train_file": ["nowhere.jsonl"]}, "there is no file 'nowhere.jsonl'"),
        (None, {"packing": [False, True], "source": ["StudentSamples()"]}, "packing needs source: Dataset"),
    ],
)
def test_what_cannot_be_meant_is_refused(shelf, tmp_path, begun, seeds, grid, says):
    with pytest.raises(ConfigError, match=says):
        sweep(recipe(shelf, tmp_path / "out"), seeds, grid)
    assert not begun
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["1,two", "1;2", "1.5", "", "1,,2", "-1"])
def test_seeds_are_numbers_with_commas(text):
    with pytest.raises(ConfigError, match=r"\(1,2,3\)"):
        read_seeds(text)


def test_seeds_as_people_write_them():
    assert read_seeds("7") == (7,)
    assert read_seeds("1,2,3") == read_seeds("[1, 2, 3]") == (1, 2, 3)


def test_a_used_directory_is_left_alone(copy, shelf, tmp_path, begun):
    output, asked = copy
    before = sorted(output.rglob("*"))
    with pytest.raises(OutputDirError, match="is in use"):
        sweep(asked, [1, 2], GRID)
    with pytest.raises(OutputDirError, match=r"was started with another recipe \(kd_temperature was 1, now 2"):
        sweep(recipe(shelf, output, kd_temperature=2.0), [1, 2], GRID, resume=True)
    with pytest.raises(OutputDirError, match="choose one"):
        sweep(recipe(shelf, output, overwrite_output_dir=True), [1, 2], GRID, resume=True)
    with pytest.raises(OutputDirError, match=r"needs the sweep\.json"):
        sweep(recipe(shelf, tmp_path / "other"), [1, 2], resume=True)
    assert sorted(output.rglob("*")) == before
    assert not begun


def test_a_used_directory_is_replaced_when_told(copy, shelf, begun):
    output, _ = copy
    found = sweep(recipe(shelf, output, overwrite_output_dir=True, max_steps=1), [4])
    assert {path.name for path in output.iterdir() if not path.name.startswith(".")} == {
        *("recipe.yaml", "report.html", SWEEP_FILE, "seed-4")
    }
    assert [one["name"] for one in found["settings"]] == [""]
    assert "overwrite_output_dir" not in (output / "recipe.yaml").read_text()


# ---- names


def test_settings_have_names_and_directories_of_their_own(shelf, tmp_path):
    asked = recipe(shelf, tmp_path, terms=None)
    grid = {"kd_weight": [1, 2.5], "lora_target_modules": ["x/" * 150, "x/" * 151], "use_peft": [True]}
    runs = plan(asked, settings_of(asked, grid), [3, 4])
    places = [run.directory.parent.name for run in runs[:4]]
    assert len(set(places)) == 4
    assert all(len(name) < 255 and "/" not in name and name.startswith("kd_weight=") for name in places)
    assert [run.seed for run in runs] == [3] * 4 + [4] * 4
    assert [run.recipe.config["kd_weight"] for run in runs[:4]] == [1, 1, 2.5, 2.5]


def test_named_settings_need_not_be_a_grid(shelf, tmp_path, begun):
    settings = {"labels alone": {"kd_weight": 0, "ce_weight": 1}, "α-β": {"divergence": "AlphaBeta(0.2, 0.7)"}}
    found = sweep_settings(recipe(shelf, tmp_path / "out", max_steps=1, eval_strategy="no"), settings)
    assert [name for name, _ in begun] == ["labels_alone/seed-42", "α-β/seed-42"]
    assert [one["name"] for one in found["settings"]] == list(settings)
    assert "--grid" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_two_processes_do_one_run_after_the_other(shelf, tmp_path):
    """Both processes agree on what to do, including a run that is skipped and one that starts over."""
    output = tmp_path / "two"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "abkd", "distill"]
    more = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "num_train_epochs": 1}
    flags = [word for name, value in values(shelf, output, **more).items() for word in (f"--{name}", str(value))]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def launch(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *launcher, *flags, *words], env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("The report: ") == 1

    launch("--seeds", "1,2")
    first = read(output)["settings"][0]["runs"]
    (output / "seed-2" / RESULT_FILE).unlink()
    shutil.rmtree(next((output / "seed-2").glob("checkpoint-*")))
    launch("--seeds", "1,2,3", "--resume")
    again = read(output)["settings"][0]["runs"]
    assert again[:2] == first
    assert "result" in again[2]
