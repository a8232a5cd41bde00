"""The output directory: valid paths, which of its files are abkd's, and one run at a time. No model is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from abkd.errors import OutputDirError
from abkd.output_dir import _lock, check_inputs, check_place, claimed, contents, note, remove_runs
from abkd.output_dir._contents import MANIFEST, OF_CHECKPOINT
from abkd.recipe import Recipe
from abkd.recipe._output import check_output, inputs_of


def fill(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return directory


def seal(checkpoint: Path) -> None:
    entries = {path.name: [path.stat().st_size, ""] for path in checkpoint.iterdir()}
    (checkpoint / OF_CHECKPOINT).write_text(json.dumps(entries))


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


RUN = ("recipe.yaml", "run.json", "metrics.jsonl", "model.safetensors", "checkpoint-2/model.safetensors")


@pytest.fixture(params=["with a manifest", "from before there were manifests"])
def run(request, tmp_path) -> Path:
    made = fill(tmp_path / "out", *RUN)
    seal(made / "checkpoint-2")
    if request.param == "with a manifest":
        note(made, *RUN[:4], "checkpoint-2")
    return made


# ---- which files are abkd's


def test_what_a_run_wrote_is_removed(run):
    fill(run, ".run.json.0123.draft", "checkpoint-4/optimizer.pt", "checkpoint-4/rng_state.pth")  # it died meanwhile
    if (run / MANIFEST).exists():
        note(run, "checkpoint-4")
    assert contents(run).begun
    remove_runs(run)
    assert not list(run.iterdir())


@pytest.mark.parametrize("foreign", ["thesis.txt", "model (1).safetensors", "notes/today.md", "checkpoint-2/notes.txt"])
def test_a_foreign_file_is_named_and_nothing_is_touched(run, foreign):
    fill(run, foreign)
    before = files(run)
    named = foreign if foreign.startswith("checkpoint") else foreign.replace("notes/today.md", "notes/")
    with pytest.raises(OutputDirError, match=rf"files that abkd did not write \({named.replace('(1)', '.1.')}\)"):
        remove_runs(run)
    assert files(run) == before
    assert not contents(run).begun


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model.safetensors", "tokenizer.json"),
        ("metrics.jsonl", "model.safetensors"),
        ("checkpoint-3/a.pt",),
    ],
    ids=["a model", "metrics of somebody", "checkpoints of somebody"],
)
def test_without_recipe_and_record_no_name_makes_a_file_ours(tmp_path, names):
    fill(tmp_path, *names)
    with pytest.raises(OutputDirError, match="files that abkd did not write"):
        remove_runs(tmp_path)
    assert files(tmp_path) == set(names)


def test_a_record_whose_writing_was_killed_makes_the_other_ours(tmp_path):
    fill(tmp_path, "recipe.yaml", f".run.json.{'0a' * 16}.draft")
    assert contents(tmp_path).begun
    check_output(tmp_path, overwrite=False, resume=False)
    remove_runs(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.yaml"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_record_that_is_no_file_is_refused_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    for resume in (True, False):
        with pytest.raises(OutputDirError, match=rf"{name}' is not a regular file"):
            check_output(tmp_path, overwrite=False, resume=resume)


def test_a_recipe_of_somebody_is_refused_before_anything_is_loaded(tmp_path):
    fill(tmp_path, "recipe.yaml")
    with pytest.raises(OutputDirError, match=r"is in use \(it contains recipe\.yaml\)"):
        check_output(tmp_path, overwrite=False, resume=False)


def test_a_folder_that_is_not_there_or_empty_is_free(tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        remove_runs(place)
        assert not contents(place).used


def test_another_run_inside_is_not_of_this_one(run):
    """Only what the manifest lists: a run that was copied into the folder of another one is foreign."""
    inner = fill(run / "second", *RUN[:3])
    note(inner, *RUN[:3])
    with pytest.raises(OutputDirError, match=r"did not write \(second/\)"):
        remove_runs(run)


def test_the_runs_of_a_sweep_are_of_the_sweep(tmp_path):
    for place in ("a/seed-1", "a/seed-2"):
        note(fill(tmp_path / place, *RUN[:4]), *RUN[:4])
    note(fill(tmp_path, "sweep.json", "recipe.yaml"), "sweep.json", "recipe.yaml", "a/seed-1", "a/seed-2")
    fill(tmp_path / "a/seed-1", "mine.txt")
    with pytest.raises(OutputDirError, match=r"\(a/seed-1/mine\.txt\)"):
        remove_runs(tmp_path)
    (tmp_path / "a/seed-1/mine.txt").unlink()
    remove_runs(tmp_path)
    assert not list(tmp_path.iterdir())


def test_links_are_never_followed(run, tmp_path):
    treasure = fill(tmp_path / "elsewhere", "treasure.txt", "model.safetensors")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(treasure / "treasure.txt")
    remove_runs(run)
    assert files(treasure) == {"treasure.txt", "model.safetensors"}
    fill(run, *RUN[:2])
    (run / "linked").symlink_to(treasure)
    with pytest.raises(OutputDirError, match="linked"):
        remove_runs(run)


def test_through_a_link_to_the_folder_itself(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    remove_runs(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert not list(run.iterdir())


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1, 2]", ""])
def test_a_manifest_that_cannot_be_read_names_nothing(tmp_path, text):
    fill(tmp_path, "model.safetensors")
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(OutputDirError, match=r"did not write \(model\.safetensors\)"):
        remove_runs(tmp_path)


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(run, monkeypatch):
    """After any number of its file operations, the rest is still known as abkd's and is removed the next time."""
    unlink, left = Path.unlink, [1]

    def dying(path: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    (run / "result.json").write_text("{}")
    note(run, "result.json") if (run / MANIFEST).exists() else None
    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        remove_runs(run)
    assert not (run / "checkpoint-2" / OF_CHECKPOINT).exists()
    assert (run / "model.safetensors").exists()
    left[0] = 10**6
    remove_runs(run)
    assert not list(run.iterdir())


# ---- valid paths


@pytest.mark.parametrize(
    "name", ["", " ", "\t\n", "a\nb", "caf\udce9", "x" * 300, "file", "file/out", "loop", "dangling"]
)
def test_what_can_be_no_folder_is_refused_and_nothing_is_made(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputDirError, match="output_dir: "):
        check_place(Path(name) if name else Path())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [".", "..", "/", "~"])
def test_folders_that_hold_more_than_a_run_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OutputDirError, match="not a folder for a single run"):
        check_place(Path(name).expanduser())


def test_a_run_may_be_resumed_from_within_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_place(Path(), resume=True)
    check_place(Path("new/deep/folder"))


@pytest.mark.parametrize(
    "where", ["data/train.jsonl", "data", ".", "student", "data/../student", "link", "student/out"]
)
def test_inputs_are_no_outputs(tmp_path, monkeypatch, where):
    """By any name: the folder itself, a parent, one inside a model's directory, one behind a link."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "data/train.jsonl", "student/config.json")
    (tmp_path / "link").symlink_to("student")
    given = {"train_file": ["data/*.jsonl"], "model_name_or_path": [str(tmp_path / "student"), "HuggingFaceTB/SmolLM2"]}
    with pytest.raises(OutputDirError, match=r"train_file|model_name_or_path"):
        check_inputs(Path(where), given)
    check_inputs(Path("out"), given)
    check_inputs(tmp_path / "stud", given)


# ---- one run at a time


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path):
    code = "import sys, pathlib; from abkd.output_dir import claimed\nwith claimed(pathlib.Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with claimed(tmp_path / "out"):
        with claimed(tmp_path / "out"):  # the trainer within abkd distill
            pass
        done = subprocess.run(command, env=paths, capture_output=True, text=True)
    assert f"process {os.getpid()} on " in done.stderr
    assert "is in use by" in done.stderr
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, env=paths, capture_output=True, text=True).returncode == 0


_PROBE = """
import json, sys
from abkd.cli._recipe import refuse_if_busy
from abkd.errors import OutputDirError

for words in json.loads(sys.argv[1]):
    try:
        refuse_if_busy(words)
        print("free")
    except OutputDirError as error:
        print("busy" if "is in use by" in str(error) else error)
print("torch" in sys.modules)
"""


def test_the_command_is_refused_before_torch_is_loaded(tmp_path):
    recipe, out = tmp_path / "recipe.yaml", str(tmp_path / "out")
    recipe.write_text(f"output_dir: {out}\n")
    there = [[str(recipe)], ["--output-dir", out], [f"--output_dir={out}", "--resume"]]
    elsewhere = [[str(recipe), "--output_dir", "x"], ["nothing.yaml"], ["--output_dir", out, "stray"], []]
    command = [sys.executable, "-c", _PROBE, json.dumps([*there, *elsewhere])]
    with claimed(tmp_path / "out"):
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert said == ["busy"] * 3 + ["free"] * 4 + ["False"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert said == ["free"] * 7 + ["False"]


def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path):
    """Loader workers briefly outlive a killed run."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(tmp_path):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(worker).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(read, 20))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        with claimed(tmp_path):
            assert (tmp_path / _lock.LOCK).is_file()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(read)
        os.close(write)
    assert not list(tmp_path.iterdir())


def test_where_the_file_system_takes_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    def refused(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with claimed(tmp_path / "out"):
        pass
    assert "does not support locks (No locks available)" in caplog.text


def test_a_folder_stays_where_something_was_written(tmp_path):
    with claimed(tmp_path / "deep" / "out"):
        note(tmp_path / "deep" / "out", "recipe.yaml")
    assert files(tmp_path) == {f"deep/out/{MANIFEST}"}


def test_a_folder_that_cannot_be_made_is_one_sentence():
    with pytest.raises(OutputDirError, match="cannot be created"), claimed(Path("/proc/abkd/out")):
        pass


@pytest.mark.parametrize("written", ["base", "../base"])
def test_the_base_of_an_adapter_is_an_input(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "base/model.safetensors", "base/config.json", "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": written}))
    for name in ("model_name_or_path", "teacher_model_name_or_path"):
        models = {"model_name_or_path": "s", "teacher_model_name_or_path": "t", name: "adapter"}
        recipe = Recipe.from_dict({**models, "train_file": "a.jsonl", "output_dir": "base"})
        with pytest.raises(OutputDirError, match=f"is the base model of {name}"):
            check_output(Path("base"), overwrite=True, resume=False, inputs=inputs_of(recipe.values()))
