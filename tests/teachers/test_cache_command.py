"""``abkd cache`` in separate processes: killed in the middle, two at once; and ``abkd distill`` with the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cache_parts import files, live, setting, view
from typer.testing import CliRunner

from abkd.cli import app
from abkd.data import prepare_dataset
from abkd.errors import ConfigError, DataError, OutputDirError
from abkd.recipe import Recipe
from abkd.run import distill
from abkd.tasks import _text_models
from abkd.teachers import HiddenCache
from abkd.teachers.caches import _lock
from training_parts import gap, llama, rows, teacher, tokenizer

MANY_SHARDS = "import time, abkd.teachers.caches._build as build; build.SHARD_BYTES = 1; "
SLOWLY = "write = build.write_shard; build.write_shard = lambda *args: (write(*args), time.sleep(0.2)); "
MAIN = "from abkd.cli import main; main()"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cached")
    for name, model in {"student": llama(0), "teacher": teacher()}.items():
        model.save_pretrained(directory / name)
        tokenizer().save_pretrained(directory / name)
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(24)))
    (directory / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    return directory


def values(shelf: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(shelf / "student"),
        "teacher_model_name_or_path": str(shelf / "teacher"),
        "train_file": str(shelf / "data.jsonl"),
        "output_dir": str(shelf / "run"),
        "use_cpu": True,
        "max_length": 64,
        "eval_fraction": 0.2,
        "dataloader_pin_memory": False,
        **more,
    }


def words(**named: Any) -> list[str]:
    return ["cache", *(word for name, value in named.items() for word in (f"--{name}", str(value)))]


def environment() -> dict[str, str]:
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def cache(**named: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        app(words(**named))
    return int(ended.value.code or 0)


def assert_complete(folder: Path, shelf: Path) -> None:
    """Every sequence of the data once, and its rows."""
    dataset = prepare_dataset(shelf / "data.jsonl", tokenizer(), max_length=64)
    reader = HiddenCache(path=str(folder)).open(setting(identity=None))
    reader.check_covers(dataset, "all")
    assert reader.store.rows == dataset.trained_tokens
    read = view(list(dataset))
    assert (reader(read).hidden - live()(read).hidden).abs().max() < 1e-5


def test_killed_it_is_refused_to_others_until_then_and_goes_on(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shelf / "killed"
    named = values(shelf, teacher=f"HiddenCache(path={str(folder)!r})", per_device_eval_batch_size=2)
    process = subprocess.Popen([sys.executable, "-c", MANY_SHARDS + SLOWLY + MAIN, *words(**named)], env=environment())
    deadline = time.monotonic() + 900
    while len(list(folder.glob("rows-*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    nothing: Any = {"first": lambda: None, "last": lambda: None}
    with (
        pytest.raises(OutputDirError, match=f"being written by process {process.pid}"),
        _lock.writing(folder, "another", **nothing),
    ):
        pass
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finished = {file.stem for file in folder.glob("rows-*.json")}
    before = {name: stamp for name, stamp in files(folder).items() if Path(name).stem in finished}
    assert 3 <= len(before) < 12
    assert cache(**named) == 0
    assert "bytes per token" in capsys.readouterr().out
    assert before.items() < files(folder).items()
    assert_complete(folder, shelf)


def test_two_processes_make_every_row_once(shelf: Path) -> None:
    folder = shelf / "shared"
    named = values(shelf, teacher=f"HiddenCache(path={str(folder)!r})")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python", sys.executable]
    done = subprocess.run(
        [sys.executable, *launcher, "-c", MANY_SHARDS + MAIN, *words(**named)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bytes per token") == 1
    assert json.loads((folder / "manifest.json").read_text())["sequences"] == 24
    assert_complete(folder, shelf)


def test_a_run_from_hidden_states_is_the_run_with_the_teacher(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"HiddenCache(path={str(tmp_path / 'cache')!r})"
    assert cache(**values(shelf, teacher=spec)) == 0
    options = {"learning_rate": 0.01, "max_steps": 4, "save_strategy": "no"}
    alive = distill(Recipe.from_dict(values(shelf, output_dir=str(tmp_path / "live"), **options)))

    original = _text_models.load_causal_lm

    def load(name: str, **kwargs: Any) -> Any:
        assert not name.endswith("teacher")
        return original(name, **kwargs)

    monkeypatch.setattr(_text_models, "load_causal_lm", load)
    shuffled = {**options, "packing": True, "per_device_train_batch_size": 2, "output_dir": str(tmp_path / "packed")}
    stored = distill(Recipe.from_dict(values(shelf, teacher=spec, output_dir=str(tmp_path / "stored"), **options)))
    distill(Recipe.from_dict(values(shelf, teacher=spec, **shuffled)))
    assert gap(alive.models.student.model, stored.models.student.model) < 1e-5
    more = values(shelf, teacher=spec, output_dir=str(tmp_path / "more"), train_file=str(shelf / "more.jsonl"))
    with pytest.raises(DataError, match="not in the cache"):
        distill(Recipe.from_dict(more))


def test_only_a_recipe_with_a_cache_can_be_cached(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache(**values(shelf)) == ConfigError.exit_code
    assert "whose teacher is a cache, got Live(); set teacher: TopKCache(k=64)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_teachers_own_text_is_cached_too(shelf, monkeypatch):
    """generate, cache, distill: after the first two, no teacher is loaded; the held-out rows are from the data."""
    recipe = values(shelf, source="TeacherSamples()", teacher="TopKCache(k=16)", max_completion_length="8")
    given = {name: value for name, value in recipe.items() if name != "output_dir"}
    runner = CliRunner()
    early = runner.invoke(app, words(**given))
    assert early.exit_code == 2
    assert "run abkd generate for the others first" in early.output.replace("\n", " ")
    assert runner.invoke(app, ["generate", *words(**given)[1:]]).exit_code == 0
    built = runner.invoke(app, words(**given))
    assert built.exit_code == 0, built.output
    monkeypatch.setattr(_text_models, "load_causal_lm", None)
    made = distill(
        Recipe.from_dict({**recipe, "output_dir": str(shelf / "own text"), "max_steps": 3, "logging_steps": 1})
    )
    logged = next(record for record in made.state.log_history if "divergence" in record)
    assert 0 < logged["covered_mass"] < 1
    assert logged["completion_length"] > 0


def test_a_row_weight_and_a_short_stage_want_whole_distributions(shelf):
    recipe = values(shelf, teacher="TopKCache(k=16)", row_weight="TeacherConfidence()", kd_temperature="2.0")
    given = {name: value for name, value in recipe.items() if name != "output_dir"}
    assert CliRunner().invoke(app, words(**given)).exit_code == 0
    with pytest.raises(ConfigError, match="has only the top-k classes"):
        distill(Recipe.from_dict({**recipe, "output_dir": str(shelf / "weighed")}))
    short = "stages((0.1, ForwardKL()), (0.2, Standardized()), (0.7, ForwardKL()))"
    later = {**recipe, "row_weight": None, "divergence": short, "output_dir": str(shelf / "later")}
    with pytest.raises(ConfigError, match=r"Standardized.* has only the top-k classes"):
        distill(Recipe.from_dict(later))  # now, and not from 10 % of the run on
    without = {**recipe, "row_weight": None, "output_dir": str(shelf / "tempered"), "max_steps": 1}
    found = distill(Recipe.from_dict(without)).evaluate()
    assert found["eval_forward_kl_top_k"] > 0
    assert "eval_forward_kl" not in found  # over k+1 buckets it is another, smaller number
