"""Whatever happens during or after the writing of a checkpoint, a complete one exists and the run resumes from it."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from abkd.errors import OutputDirError, StorageError
from abkd.storage import disk_errors
from abkd.trainer import _checkpoints, _save
from training_parts import gap, llama, lora, rows, trainer, weights

TESTS = Path(__file__).resolve().parents[1]
EVERY_SECOND = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def whole(directory: Path) -> list[str]:
    return [path.name for path in _checkpoints.checkpoints(directory) if _checkpoints.corruption(path) is None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with two checkpoints, and its weights."""
    directory = tmp_path_factory.mktemp("finished")
    made = trainer(directory, **EVERY_SECOND)
    made.train()
    return directory, weights(made.model)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", _checkpoints.MANIFEST],
)
def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, name, damage):
    run = shutil.copytree(finished[0], tmp_path / "run")
    damage(run / "checkpoint-4" / name)
    newest, passed = _checkpoints.newest_whole(run)
    assert newest.name == "checkpoint-2"
    assert passed[0].startswith("checkpoint-4 is skipped: ")


def test_the_run_goes_on_from_the_older_checkpoint_and_says_so(finished, tmp_path, caplog):
    run = shutil.copytree(finished[0], tmp_path / "run")
    truncate(run / "checkpoint-4" / "optimizer.pt")
    with caplog.at_level(logging.WARNING, "abkd"):
        resumed = trainer(run, llama(5), **EVERY_SECOND)
        resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is skipped: optimizer.pt was modified or truncated" in caplog.text
    assert gap(resumed.model, finished[1]) == 0.0
    assert whole(run) == ["checkpoint-2", "checkpoint-4"]


def test_nothing_to_resume(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    truncate(run / "checkpoint-4" / "rng_state.pth")
    with pytest.raises(OutputDirError, match=r"rng_state\.pth was modified or truncated"):
        trainer(run, **EVERY_SECOND).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    (run / "checkpoint-2" / _checkpoints.MANIFEST).unlink()
    with pytest.raises(OutputDirError, match="checkpoint-2 is skipped: it is incomplete"):
        trainer(run, **EVERY_SECOND).train(resume_from_checkpoint=True)
    with pytest.raises(OutputDirError, match="there is no checkpoint"):
        trainer(tmp_path / "new", **EVERY_SECOND).train(resume_from_checkpoint=True)


def test_a_limit_of_one_always_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Checked before and after every file operation that creates or removes a checkpoint."""
    seen: list[list[str]] = []
    for name in ("seal", "discard"):
        original = getattr(_checkpoints, name)

        def spied(checkpoint, original=original):
            seen.append(whole(tmp_path))
            original(checkpoint)
            seen.append(whole(tmp_path))

        monkeypatch.setattr(_checkpoints, name, spied)
    made = trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=4, save_total_limit=1)
    made.train()
    after_first = seen[next(i for i, names in enumerate(seen) if names) :]
    assert len(after_first) >= 10
    assert all(after_first)
    assert whole(tmp_path) == ["checkpoint-4"]


def test_what_was_just_saved_stays_where_a_later_step_was_saved_before(finished, tmp_path):
    """As in a run that was resumed from an older checkpoint by name."""
    run = shutil.copytree(finished[0], tmp_path / "run")
    _checkpoints.rotate(run / "checkpoint-2", 1, None)
    assert whole(run) == ["checkpoint-2"]


@pytest.mark.parametrize("finished_once", [True, False], ids=["whole", "half written"])
def test_rotation_leaves_files_of_others(finished, tmp_path, caplog, finished_once):
    run = shutil.copytree(finished[0], tmp_path / "run")
    (run / "checkpoint-2" / "notes").mkdir()
    (run / "checkpoint-2" / "notes" / "mine.md").write_text("which one was best")
    if not finished_once:
        (run / "checkpoint-2" / _checkpoints.MANIFEST).unlink()
    _checkpoints.rotate(_checkpoints.checkpoints(run)[-1], 1, None)
    left = [path.relative_to(run / "checkpoint-2").as_posix() for path in (run / "checkpoint-2").rglob("*")]
    assert sorted(left) == ["notes", "notes/mine.md"]
    assert "which no run wrote" in caplog.text
    assert whole(run) == [_checkpoints.checkpoints(run)[-1].name]


def test_half_a_checkpoint_of_adapters_is_removed_with_the_card_that_peft_writes_first(tmp_path, caplog):
    trainer(tmp_path, peft_config=lora(), **EVERY_SECOND).train()
    assert (tmp_path / "checkpoint-2" / "README.md").is_file()
    (tmp_path / "checkpoint-2" / _checkpoints.MANIFEST).unlink()
    _checkpoints.rotate(tmp_path / "checkpoint-4", 1, None)
    assert not (tmp_path / "checkpoint-2").exists()
    assert "which no run wrote" not in caplog.text


def test_torch_s_own_words_for_a_full_disk():
    """They depend on where the space ends: in the middle, or when the stream is closed."""

    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def closed(*_):
        raise RuntimeError("basic_ios::clear: iostream error")

    for call in (lambda: torch.save(torch.zeros(9), Full()), closed):
        with pytest.raises(StorageError, match="make room"), disk_errors("it", "make room"):
            call()


def test_a_checkpoint_that_is_whole_is_not_written_again(tmp_path):
    """The end of an epoch may save the step again from which a finished run was resumed."""
    options = {"save_strategy": "epoch", "max_steps": 6, "data": rows(10), "save_total_limit": 1}
    trainer(tmp_path, **options).train()
    manifest = tmp_path / "checkpoint-6" / _checkpoints.MANIFEST
    before = manifest.stat().st_mtime_ns
    trainer(tmp_path, **options).train(resume_from_checkpoint=True)
    assert whole(tmp_path) == ["checkpoint-6"]
    assert manifest.stat().st_mtime_ns == before


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    """The learning rate is so high that the first checkpoint is the best."""
    made = trainer(
        tmp_path,
        learning_rate=1.0,
        eval_dataset=rows(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_forward_kl",
        greater_is_better=False,
        max_steps=4,
    )
    made.train()
    history = {e["step"]: e["eval_forward_kl"] for e in made.state.log_history if "eval_forward_kl" in e}
    best = min(history, key=lambda step: history[step])
    assert best < 4
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert f"checkpoint-{best}" in whole(tmp_path)
    assert made.evaluate()["eval_forward_kl"] == pytest.approx(history[best], rel=1e-6)


def test_a_full_disk_costs_only_the_new_checkpoint(tmp_path):
    """No file may grow beyond 40 kB once the first checkpoint is written."""
    code = f"""
import resource, sys
from training_parts import trainer
from transformers import TrainerCallback
class Full(TrainerCallback):
    def on_save(self, *_, **__):
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
trainer({str(tmp_path)!r}, save_strategy="steps", save_steps=2, save_total_limit=1, callbacks=[Full()]).train()
"""
    done = child(code)
    assert "abkd.errors.StorageError: the checkpoint" in done.stderr
    assert "The previous checkpoint is complete; free some disk space and continue with --resume" in done.stderr
    assert whole(tmp_path) == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-4").exists()


VICTIMS = ("model.safetensors", "optimizer.pt", "trainer_state.json", _checkpoints.MANIFEST)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs that died by SIGKILL while a file of their second checkpoint was being written, by that file's name."""
    directory = tmp_path_factory.mktemp("killed")
    code = f"""
import os, signal, sys
import torch, transformers.modeling_utils
from pathlib import Path
from training_parts import trainer

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def cut(write, victim):
    def half(what, path, *args, **kwargs):
        write(what, path, *args, **kwargs)
        if str(path).endswith(f"checkpoint-4/{{victim}}"):
            os.truncate(path, os.path.getsize(path) // 2)
            die()
    return half

def watch(event, words):
    path = str(words[1] if event == "os.rename" else words[0] if words else "")
    if event in ("open", "os.rename") and path.endswith(f"checkpoint-4/{{victim}}"):
        die()

for victim in {VICTIMS!r}:
    if os.fork() == 0:
        torch.save = cut(torch.save, victim)
        transformers.modeling_utils.safe_save_file = cut(transformers.modeling_utils.safe_save_file, victim)
        if victim.endswith("json"):
            sys.addaudithook(watch)
        run = Path({str(directory)!r}) / victim
        trainer(run, save_strategy="steps", save_steps=2, max_steps=4, save_total_limit=1).train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL, victim
"""
    done = child(code)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_saving(killed, finished, victim):
    assert whole(killed / victim) == ["checkpoint-2"]
    resumed = trainer(killed / victim, llama(5), **EVERY_SECOND, save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    assert gap(resumed.model, finished[1]) == 0.0
    assert whole(killed / victim) == ["checkpoint-4"]


def child(code: str) -> subprocess.CompletedProcess[str]:
    paths = [str(TESTS), *(entry for entry in sys.path if entry)]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("elsewhere", [True, False], ids=["room in another place", "room nowhere"])
def test_without_checkpoints_a_full_disk_at_the_end_does_not_lose_the_student(tmp_path, monkeypatch, elsewhere):
    """With save_strategy: no there is no other checkpoint to return to."""
    rescue = tmp_path / "rescue"
    rescue.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(rescue))
    monkeypatch.setattr(_save, "LAST_RESORTS", ())
    made = trainer(tmp_path / "run", max_steps=1)
    made.train()
    write = made._write_student

    def full(directory: Path) -> None:
        write(directory)
        if not (elsewhere and directory.is_relative_to(rescue)):
            raise Exception("File too large (os error 27)")  # as tokenizers raises it

    monkeypatch.setattr(made, "_write_student", full)
    with pytest.raises(StorageError) as refused:
        made.save_model()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list((tmp_path / "run").glob(".student*"))
    kept = list(rescue.glob("abkd-student-*/model.safetensors"))
    if elsewhere:
        assert f"It was saved in {kept[0].parent} instead" in str(refused.value)
        assert gap(load_file(kept[0]), made.model) == 0.0
    else:
        assert not kept
        assert "there is no checkpoint (save_strategy)" in str(refused.value)
