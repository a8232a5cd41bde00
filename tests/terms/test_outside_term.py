"""FitNets written in a package outside of abkd: used from a recipe, inside another component, trained and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from abkd.cli import app
from abkd.notation import parse, render
from outside_parts import forgotten
from training_parts import gap, llama, rows, save_models, teacher, write_rows

PACKAGE = "hints_of_others"
HINT = f"python:{PACKAGE}.hints:Hint"
# The file of the house is the file of the package: a stranger needs nothing private.
PRIVATE = {"from abkd.terms._base import": "from abkd.terms import", "class FitNet(": "class Hint(", "FitNet": "Hint"}


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import abkd.terms.fitnet as house

    folder = tmp_path_factory.mktemp("installed")
    source = Path(str(house.__file__)).read_text(encoding="utf-8")
    for ours, theirs in PRIVATE.items():
        source = source.replace(ours, theirs)
    assert " abkd.terms._" not in source
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").write_text('"""Losses of others."""\n')
    (folder / PACKAGE / "hints.py").write_text(source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, forgotten(PACKAGE):
        patch.syspath_prepend(folder)
        yield folder


def test_it_is_written_inside_another_component() -> None:
    second = f"[Term(ForwardKL()), {HINT}('a', 'b', weight=anneal(1.0, 0.0))]"
    text = f"stages((0.5, [{HINT}('hidden.1', 'hidden.2')]), (0.5, {second}))"
    schedule = parse(text)
    assert parse(render(schedule)) == schedule
    assert render(schedule).count(f"{HINT}(") == 2


def test_a_recipe_trains_and_resumes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_models(tmp_path, student=llama(0, layers=2), teacher=teacher())
    write_rows(tmp_path / "data.jsonl", rows(12))
    second = f"[Term(ForwardKL()), {HINT}('hidden.-1', 'hidden.-1')]"
    recipe = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "train_file": "data.jsonl",
        "output_dir": "run",
        "terms": f"stages((1, [{HINT}('hidden.1', 'hidden.1')]), (1, {second}))",
        "max_steps": 4,
        "save_steps": 2,
        "save_strategy": "steps",
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run("distill", "recipe.yaml")
    whole, log = load_file(tmp_path / "run" / "model.safetensors"), losses(tmp_path / "run")
    assert ["feature_distance" in line for line in log] == [True] * 4
    assert set(whole) == set(load_file(tmp_path / "student" / "model.safetensors"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    for left in ("checkpoint-4", "result.json", "model.safetensors"):
        path = tmp_path / "run" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run("distill", "recipe.yaml", "--resume")
    assert gap(load_file(tmp_path / "run" / "model.safetensors"), whole) == 0.0
    assert [line["loss"] for line in losses(tmp_path / "run")] == [line["loss"] for line in log]


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        app(list(words))
    assert not ended.value.code


def losses(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
