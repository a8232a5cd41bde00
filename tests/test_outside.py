"""Components of other packages: their notation, the entry points, and when their code is imported."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from abkd import outside
from abkd.cli import app
from abkd.config import DistillConfig
from abkd.divergences import AlphaBeta, Divergence, ForwardKL, Standardized
from abkd.errors import ConfigError
from abkd.notation import parse, read, render
from abkd.recipe import Recipe
from abkd.report import write_report
from abkd.schedules import stages
from abkd.terms import Term
from outside_parts import forgotten, register, write_package
from training_parts import llama, rows, save_models, teacher, write_rows

LOSSES = "other_losses"
BRIER = f"python:{LOSSES}.losses:Brier"
BOTH = f"python:{LOSSES}.losses:Both"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on ``sys.path`` with the package ``other_losses``."""
    folder = tmp_path_factory.mktemp("installed")
    write_package(folder, LOSSES)
    with pytest.MonkeyPatch.context() as patch, forgotten(LOSSES):
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The marker of ``fresh_losses``, a package that no other test has imported; it exists after an import."""
    marker = write_package(tmp_path / "fresh", "fresh_losses")
    monkeypatch.syspath_prepend(tmp_path / "fresh")
    monkeypatch.chdir(tmp_path)
    with forgotten("fresh_losses"):
        yield marker


FRESH = "python:fresh_losses.losses:Brier"


def brier(power: float = 2.0) -> Any:
    return parse(f"{BRIER}({power!r})")


# ---- notation


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (f"{BRIER}()", f"{BRIER}(power=2.0)"),
        (f" {BRIER}( power = 0.5 )", f"{BRIER}(power=0.5)"),
        (f"Standardized({BRIER}(1))", f"Standardized(divergence={BRIER}(power=1), temperature=2.0)"),
        (
            f"{BOTH}(AlphaBeta(0.2, 0.7), other={BRIER}(3.0))",
            f"{BOTH}(first=AlphaBeta(alpha=0.2, beta=0.7), other={BRIER}(power=3.0))",
        ),
        (f"stages((0.5, {BRIER}()), (0.5, ForwardKL()))", f"stages((0.5, {BRIER}(power=2.0)), (0.5, ForwardKL()))"),
        (f"[Term({BRIER}()), '{BRIER}()', \"it's {BRIER}\"]", None),
        (f"python:{LOSSES}.losses:Labels('python:a.b:C() and \\'python:x')", None),
        (f"{BRIER}(  # it's python:a.b:C\n 1.0)", f"{BRIER}(power=1.0)"),
    ],
)
def test_it_is_read_and_written_wherever_a_component_is(text: str, written: str | None) -> None:
    value = parse(text)
    assert written is None or render(value) == written
    assert parse(render(value)) == value
    assert render(parse(render(value))) == render(value)


def divergences() -> st.SearchStrategy[Divergence]:
    """Trees of abkd's own divergences and those of the package."""
    powers = st.floats(0.5, 1e6)
    leaves = st.just(ForwardKL()) | st.builds(AlphaBeta, powers, powers) | st.builds(brier, powers)

    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        both = st.tuples(inner, inner).map(lambda parts: type(parse(f"{BOTH}(ForwardKL())"))(*parts))
        return st.builds(Standardized, inner, powers) | both

    return st.recursive(leaves, around, max_leaves=6)


@given(divergences(), divergences())
def test_the_notation_is_a_round_trip(one: Divergence, other: Divergence) -> None:
    for value in (one, Term(one), stages((1.0, one), (2.0, other)), [one, (other, "python:a.b:C()")]):
        assert parse(render(value)) == value
        assert render(parse(render(value))) == render(value)
        assert render(read(render(value))) == render(value)
        assert (read(render(value)) == value) == (BRIER not in render(value) and BOTH not in render(value))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("python:no_package:Brier()", "there is no module 'no_package': it is not installed"),
        (f"python:{LOSSES}.loses:Brier()", f"there is no module '{LOSSES}.loses'"),
        (f"python:{LOSSES}.losses:Briar()", "has no 'Briar'; it defines Brier"),
        (f"{BRIER}(powr=1)", f"has no argument 'powr'; did you mean power? Its signature is {BRIER}(power=2.0)"),
        (f"{BRIER}(1, 2)", "too many positional arguments; its signature is"),
        (f"{BRIER}(0)", "power is not above 0"),
        (BRIER, f"write {BRIER}() instead of {BRIER}"),
        (f"Standardized({BRIER})", f"write {BRIER}() instead"),
        (f"python:{LOSSES}.losses(1)", "expected python:package.module:Name(...), got"),
        (f"python:{LOSSES}:losses.Brier(1)", "expected python:package.module:Name(...), got"),
        ("python: other", "expected python:package.module:Name(...), got 'python:'"),
        (f"{LOSSES}.losses.Brier(1)", "a component of another package is python:package.module:Name(...)"),
        (f"python:{LOSSES}.losses:build()", "expected a class with @dataclass(frozen=True), got <function build"),
        (f"python:{LOSSES}.losses:Divergence()", "got one imported into"),
        (f"python:{LOSSES}.losses:Changing()", "got a dataclass whose fields may change"),
        (f"python:{LOSSES}.losses:Bare()", "got a class that is no dataclass"),
        ("python:abkd.divergences:Pointwise()", "got an abstract class; implement value_and_slope"),
        ("python:os:system('true')", "expected a class with @dataclass(frozen=True), got <built-in function system>"),
        ("python·os·system('true')", "expected a constructor call"),
        (f"Standardized(python:{LOSSES}.losses:Labels())", "divergence must be a divergence"),
        (f"{BRIER}(**{{}})", "by its own name"),
    ],
)
def test_what_is_refused_and_how(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text)
    assert says in str(refusal.value)


def test_a_component_of_another_slot_is_refused() -> None:
    labels = f"python:{LOSSES}.losses:Labels()"
    with pytest.raises(ConfigError, match=rf"source must be a schedule or a source, got {labels[:-2]}\(text=''\)"):
        Recipe.from_dict({"model_name_or_path": "student", "train_file": "x", "source": labels})
    with pytest.raises(ConfigError, match="teacher must be a teacher"):
        DistillConfig(output_dir="x", use_cpu=True, teacher=labels)


def test_the_file_is_named_before_its_code_runs_and_the_rest_is_checked_first(fresh: Path, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="abkd"):
        for text in (f"Standardised({FRESH}())", f"Standardized({FRESH}(), size=1)", f"[{FRESH}(), AlphaBeta(nan, 1)]"):
            with pytest.raises(ConfigError):
                parse(text)
        assert str(read(f"Standardized({FRESH}(powr=1))")) == f"Standardized({FRESH}(powr=1))"
        assert not fresh.exists()
        assert not caplog.messages
        parse(f"Standardized({FRESH}())")
    file = fresh.parent / "fresh_losses" / "losses.py"
    assert caplog.messages == [f"abkd: importing fresh_losses.losses from {file} for {FRESH}"]
    assert fresh.exists()


def test_what_has_no_name_in_a_module_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Local(Divergence):
        formula = "D"

        def rows(self, log_p, log_q, targets=None): ...

    assert render(Local()) == repr(Local())
    given = {"model_name_or_path": "a", "teacher_model_name_or_path": "b", "train_file": "c", "divergence": Local()}
    with pytest.raises(ConfigError, match="has no notation, so it cannot be part of a recipe"):
        Recipe.from_dict(given).to_yaml()


@pytest.mark.slow
def test_another_process_finds_what_was_pickled(package: Path) -> None:
    value = parse(f"{BOTH}(ForwardKL())")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer))".replace("pickle.load", "pickle._load")
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(value),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *filter(None, sys.path)])},
        timeout=300,
    )
    assert done.stdout.decode().strip() == repr(value), done.stderr


# ---- entry points


@pytest.fixture
def distribution(fresh: Path) -> Path:
    """A folder on ``sys.path`` with the metadata of ``fresh-losses``, which registers ``Brier``, ``Twice`` and more."""
    folder = fresh.parent
    names = {"Brier": "fresh_losses.losses:Brier", "Twice": "fresh_losses.losses:Both", "Broken": "fresh_losses"}
    register(folder, "fresh-losses", **names, ForwardKL="fresh_losses.losses:Brier")
    outside._registered.cache_clear()
    return folder


def test_a_registered_name_is_a_component(distribution: Path, fresh: Path) -> None:
    assert parse("ForwardKL()") == ForwardKL()
    assert str(read("DKD(Brier(1.0))")) == "DKD(Brier(1.0))"
    assert not fresh.exists()
    value = parse("Twice(Brier(1.0))")
    assert fresh.exists()
    assert render(value) == (
        "python:fresh_losses.losses:Both(first=python:fresh_losses.losses:Brier(power=1.0), "
        "other=python:fresh_losses.losses:Brier(power=2.0))"
    )
    assert parse(render(value)) == value


def test_our_names_stay_ours_and_it_is_said(distribution: Path, fresh: Path, caplog) -> None:
    from abkd import notation

    notation._warn_of_our_names.cache_clear()
    assert parse("ForwardKL()") == ForwardKL()
    read("Brier()")
    assert "entry point ForwardKL of another package is ignored" in caplog.text
    assert "write python:fresh_losses.losses:Brier(...)" in caplog.text
    assert not fresh.exists()


def test_an_unknown_name_has_the_registered_ones_beside_ours(distribution: Path, fresh: Path) -> None:
    with pytest.raises(ConfigError, match=r"'Brior'; did you mean Brier\? Available: AdapterOff, .*, Brier, Broken, "):
        parse("Brior()")
    with pytest.raises(ConfigError, match=r"write Brier\(\) instead of Brier"):
        parse("Brier")
    with pytest.raises(ConfigError, match=r"expected package.module:Name in the entry point of fresh-losses, got"):
        parse("Broken()")
    assert not fresh.exists()


def test_a_name_of_two_packages_is_refused(distribution: Path, fresh: Path) -> None:
    register(distribution, "second", Brier="second.losses:Brier")
    outside._registered.cache_clear()
    with pytest.raises(ConfigError) as refusal:
        parse("Brier()")
    assert "fresh-losses (fresh_losses.losses:Brier) and second (second.losses:Brier)" in str(refusal.value)
    assert "write the one that you mean as python:fresh_losses.losses:Brier(...)" in str(refusal.value)
    assert not fresh.exists()


# ---- what only reads imports nothing


def abkd(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(list(words))
    return int(ended.value.code or 0)


def recipe_file(file: Path, **values: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    given = {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher", "train_file": "data.jsonl"}
    file.write_text(yaml.safe_dump({**given, "divergence": f"Standardized({FRESH}(1.0))", **values}))
    return file


def test_show_prints_it_as_it_stands(fresh: Path, distribution: Path, tmp_path: Path, capsys) -> None:
    file = recipe_file(tmp_path / "mine.yaml", source="Twice(Dataset())", max_completion_length=7)
    assert abkd("show", str(file), "--kd_temperature", "2") == 0
    shown = capsys.readouterr().out
    assert f"The objective is not shown: it depends on {FRESH}, python:fresh_losses.losses:Both, which abkd" in shown
    values = yaml.safe_load(shown)
    assert values["divergence"] == f"Standardized({FRESH}(1.0))"
    assert (values["source"], values["max_completion_length"], values["kd_temperature"]) == ("Twice(Dataset())", 7, 2.0)
    for extra, said in {
        ("--sample",): "--sample needs the source",
        ("--row_weight", "Brir()"): "did you mean Brier?",
        ("--kd_temperature", "-1"): "kd_temperature must be",
        ("--learning_rate", "x"): "learning_rate must be",
        ("--divergence", f"Standardized({FRESH}(), size=1)"): "no argument 'size'",
        ("--augmentation", f"[{FRESH}()]"): "augmentation does not apply to the task text-generation",
    }.items():
        (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        assert abkd("show", str(file), *extra) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not fresh.exists()


def test_show_and_report_read_the_folder_of_a_run(fresh: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    recipe_file(run / "recipe.yaml", terms=f"[Term({FRESH}())]", divergence=None, allow_code=["fresh_losses"])
    (run / "run.json").write_text(json.dumps({"objective": FRESH, "source": f"{FRESH}()", "teacher": f"{FRESH}() x"}))
    assert abkd("show", str(run / "recipe.yaml")) == 0
    assert f"terms: '[Term({FRESH}())]'" in capsys.readouterr().out
    page = write_report(run).read_text()
    assert f"[Term({FRESH}())]" in page
    (run / "sweep.json").write_text(
        json.dumps(
            {
                "task": "text-generation",
                "seeds": [1],
                "grid": {"divergence": [f"{FRESH}()"]},
                "unlabelled_classes": [""],
                "settings": [{"name": f"divergence={FRESH}()", "runs": [{"directory": "seed-1"}], "summary": {}}],
            }
        )
    )
    page = write_report(run).read_text()
    assert f"{FRESH}()" in page.partition("--grid")[2]
    assert not fresh.exists()


def test_a_recipe_without_its_code_cannot_be_run(fresh: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(recipe_file(tmp_path / "mine.yaml"), load_code=False)
    with pytest.raises(ConfigError, match="was read without its code"):
        recipe.distill_config()
    assert not fresh.exists()


# ---- whose code is imported

NET = "python:fresh_losses.losses:build"


@pytest.mark.parametrize("mark", ["run.json", ".abkd_files.json", "sweep.json", "config.json", "adapter_config.json"])
def test_a_recipe_that_lies_with_a_run_or_a_model_has_to_be_allowed(mark: str, fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gift"
    file = recipe_file(folder / "deeper" / "recipe.yaml", allow_code=["fresh_losses"])
    (folder / mark).write_text("{}")
    (tmp_path / "link.yaml").symlink_to(file)
    extends = tmp_path / "mine.yaml"
    extends.write_text("extends: gift/deeper/recipe.yaml\n")
    whose = "a model" if "config" in mark else "a run"
    for path in (file, tmp_path / "link.yaml", extends):
        for allowed in ({}, {"allow_code": ["fresh", "fresh_losses.loss", "other"]}):
            with pytest.raises(ConfigError) as refusal:
                Recipe.from_yaml(path, allowed)
            said = str(refusal.value)
            assert (
                f"lies in the folder of {whose} and names code, so running it would import fresh_losses.losses ("
                in said
            )
            assert f"/fresh_losses/losses.py) for {FRESH}" in said
            assert "add --allow_code fresh_losses.losses" in said
    assert not fresh.exists()
    assert Recipe.from_yaml(extends, {"divergence": "ForwardKL()"}).config["divergence"] == ForwardKL()
    assert not fresh.exists()
    extends.write_text("extends: gift/deeper/recipe.yaml\nallow_code: fresh_losses\n")
    for path, flags in ((extends, {}), (file, {"allow_code": ["fresh_losses.losses"]})):
        assert FRESH in Recipe.from_yaml(path, flags).to_yaml()
    assert fresh.exists()


def test_what_such_a_recipe_extends_has_to_be_allowed_too(fresh: Path, tmp_path: Path) -> None:
    recipe_file(tmp_path / "base.yaml", allow_code=["fresh_losses"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "recipe.yaml").write_text("extends: ../base.yaml\n")
    with pytest.raises(ConfigError, match=r"add --allow_code fresh_losses\.losses"):
        Recipe.from_yaml(tmp_path / "model" / "recipe.yaml")
    assert not fresh.exists()
    Recipe.from_yaml(tmp_path / "base.yaml")
    assert fresh.exists()


def test_names_of_models_and_registered_names_have_to_be_allowed_too(fresh: Path, distribution: Path, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for values in (
        {"divergence": "ForwardKL()", "teacher_model_name_or_path": ["a", NET]},
        {"divergence": "ForwardKL()", "model_name_or_path": NET},
        {"divergence": "Brier()"},
        {"divergence": None, "terms": ["Term(ForwardKL())", "Term(Brier())"]},
    ):
        file = recipe_file(tmp_path / "run" / "recipe.yaml", **values)
        with pytest.raises(ConfigError, match=r"add --allow_code fresh_losses\.losses"):
            Recipe.from_yaml(file)
    assert not fresh.exists()


def test_the_flag_may_be_repeated(fresh: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr("abkd.run.distill", lambda recipe, resume: seen.append(recipe))
    monkeypatch.setattr(Recipe, "check_ready", lambda *_, **__: None)
    file = recipe_file(tmp_path / "run" / "recipe.yaml")
    (tmp_path / "run" / "run.json").write_text("{}")
    words = ["distill", str(file), "--output_dir", str(tmp_path / "again")]
    assert abkd(*words) == 2
    assert "add --allow_code fresh_losses.losses" in " ".join(capsys.readouterr().err.split())
    assert abkd(*words, "--allow_code", "other", "--allow_code", "fresh_losses") == 0
    assert f"importing fresh_losses.losses from {fresh.parent / 'fresh_losses' / 'losses.py'} for {FRESH}" in " ".join(
        capsys.readouterr().err.split()
    )
    assert seen[0].config["allow_code"] == ["other", "fresh_losses"]


def test_a_recipe_of_ones_own_and_flags_need_no_permission(fresh: Path, tmp_path: Path) -> None:
    base = recipe_file(tmp_path / "base.yaml")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    for recipe in (
        Recipe.from_yaml(base),
        Recipe.from_yaml(tmp_path / "mine.yaml"),
        Recipe.from_yaml("quickstart", {"divergence": f"Standardized({FRESH}(1.0))"}),
    ):
        assert f"divergence: Standardized(divergence={FRESH}(power=1.0), temperature=2.0)" in recipe.to_yaml()


def test_a_sweep_takes_it_in_its_grid(tmp_path: Path) -> None:
    from abkd.sweep._plan import settings_of

    recipe = Recipe.from_dict({"model_name_or_path": "a", "teacher_model_name_or_path": "b", "train_file": "c"})
    settings = settings_of(recipe, {"divergence": [f"{BRIER}(1.0)", f"Standardized({BRIER}())"]})
    assert list(settings) == [
        f"divergence={BRIER}(power=1.0)",
        f"divergence=Standardized(divergence={BRIER}(power=2.0), temperature=2.0)",
    ]


# ---- a whole run


def in_two_processes(at: Path, *words: str, path: Path) -> subprocess.CompletedProcess[str]:
    places = [str(path), *(entry for entry in sys.path if entry and "installed" not in entry)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "abkd", *words],
        cwd=at,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_two_processes_of_distill_use_it_from_a_recipe(tmp_path: Path) -> None:
    marker = write_package(tmp_path / "lib", "my_losses")
    save_models(tmp_path, student=llama(0), teacher=teacher())
    write_rows(tmp_path / "data.jsonl", rows(6))
    recipe_file(
        tmp_path / "mine.yaml",
        divergence="Standardized(python:my_losses.losses:Both(AlphaBeta(0.2, 0.7), python:my_losses.losses:Brier(3)))",
        output_dir="run",
        max_steps=2,
        save_strategy="no",
        use_cpu=True,
        dataloader_num_workers=1,
        eval_fraction=0.0,
    )
    done = in_two_processes(tmp_path, "distill", "mine.yaml", path=tmp_path / "lib")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "lib" / "my_losses" / "losses.py"
    assert f"importing my_losses.losses from {file} for python:my_losses.losses:Both" in " ".join(done.stderr.split())
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["divergence"]
    assert kept == (
        "Standardized(divergence=python:my_losses.losses:Both(first=AlphaBeta(alpha=0.2, beta=0.7), "
        "other=python:my_losses.losses:Brier(power=3)), temperature=2.0)"
    )
    assert marker.exists()
