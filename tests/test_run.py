"""``abkd distill`` from files to files: the files of a run, how it stops, and exact resumption."""

from __future__ import annotations

import html
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from abkd.errors import AbkdError, DataError, OutputDirError
from abkd.recipe import Recipe
from abkd.run import distill
from training_parts import gap, gpt2, llama, rows, save_models, tokenizer, write_rows

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """Two students (with dropout and without), a teacher, and data."""
    directory = tmp_path_factory.mktemp("shelf")
    save_models(directory, student=gpt2(0), plain=llama(0), teacher=llama(7, width=48, layers=2, sharpness=6.0))
    write_rows(directory / "data.jsonl", rows(30))
    write_rows(directory / "text.jsonl", ({"text": row["completion"] * 9} for row in rows(9)))
    return directory


def values(shelf: Path, output: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(shelf / "student"),
        "teacher_model_name_or_path": str(shelf / "teacher"),
        "train_file": str(shelf / "data.jsonl"),
        "output_dir": str(output),
        "use_cpu": True,
        "learning_rate": 0.003,
        "per_device_train_batch_size": 4,
        "eval_fraction": 0.2,
        "max_length": 64,
        "logging_steps": 1,
        "max_steps": 10,
        "dataloader_pin_memory": False,
        **more,
    }


def records(output: Path) -> list[dict[str, Any]]:
    timing = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "generated_tokens_per_second"}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timing} for line in lines if "train_runtime" not in line]


def start(
    shelf: Path, output: Path, *, prelude: str = "", launcher: Sequence[str] = (), **more: Any
) -> subprocess.Popen[str]:
    """``python -m abkd distill`` in a process of its own, on one thread."""
    flags = [word for name, value in values(shelf, output, **more).items() for word in (f"--{name}", str(value))]
    run = ["-c", f"{prelude}; from abkd.cli import main; main()"] if prelude else [*launcher, "-m", "abkd"]
    return subprocess.Popen(
        [sys.executable, *run, "distill", *flags],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "metrics.jsonl").is_file() and f'"step": {step},' in (output / "metrics.jsonl").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


LONG = {"max_steps": 150, "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}


@pytest.fixture(scope="module")
def stopped(shelf, tmp_path_factory):
    """Runs stopped by a signal during training, and one whose files may not grow: exit code and output."""
    directory = tmp_path_factory.mktemp("stopped")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    jobs = {
        "SIGINT": start(shelf, directory / "SIGINT", **LONG),
        "SIGTERM": start(shelf, directory / "SIGTERM", **LONG),
        "full": start(shelf, directory / "full", prelude=limit, save_strategy="steps", save_steps=3),
    }
    for name in ("SIGINT", "SIGTERM"):
        wait_for_step(jobs[name], directory / name, 9)
        jobs[name].send_signal(getattr(signal, name))
    outputs = {name: job.communicate(timeout=900)[0] for name, job in jobs.items()}
    return {name: (job.returncode, outputs[name], directory / name) for name, job in jobs.items()}


@pytest.fixture(scope="module")
def undisturbed(shelf, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    distill(Recipe.from_dict(values(shelf, output, **LONG)))
    return output


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(stopped, undisturbed, shelf, name, code):
    status, said, output = stopped[name]
    assert status == code, said
    assert re.search(r"^step \d+/150  loss \d", said, re.MULTILINE)  # no terminal, so a line for each log
    assert f"abkd: stopped by {name} after step" in said.replace("\n", " ")
    assert "continue with --resume" in said.replace("\n", " ")
    assert len(list(output.glob("checkpoint-*"))) in (1, 2)  # the newest and the best
    assert not (output / "model.safetensors").exists()
    distill(Recipe.from_dict(values(shelf, output, **LONG)), resume=True)
    first, second = (load_file(where / "model.safetensors") for where in (undisturbed, output))
    assert gap(first, second) == 0.0
    assert records(output) == records(undisturbed)


@pytest.mark.long
def test_a_killed_run_that_writes_goes_on_as_if_nothing_had_happened(shelf, tmp_path):
    """By SIGKILL at any point: the newest complete checkpoint has buffer, threshold and the teacher's average."""
    more = {
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 3,
        "source": "Privileged(Mix(Adaptive(0.5, 0.1, 0.0), Replay(StudentSamples(), 8, fresh=0.5), Dataset()), 'bye ')",
        "teacher": "EMA(decay=0.9)",
        "teacher_model_name_or_path": "",
        "max_completion_length": 6,
    }
    killed = start(shelf, tmp_path / "killed", **more)
    wait_for_step(killed, tmp_path / "killed", 10)
    killed.kill()
    killed.communicate(timeout=300)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    again = start(shelf, tmp_path / "killed", resume=True, **more)
    said = again.communicate(timeout=900)[0]
    assert again.returncode == 0, said
    whole = start(shelf, tmp_path / "whole", **more)
    said = whole.communicate(timeout=900)[0]
    assert whole.returncode == 0, said
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert gap(first, second) == 0.0
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def test_a_full_disk_has_its_exit_code(stopped):
    status, said, output = stopped["full"]
    assert status == 4, said
    assert "could not be written" in said
    assert not list(output.glob("checkpoint-*"))


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="it cannot resume several processes on CPUs")
@pytest.mark.long
def test_two_launched_processes_stop_together_and_go_on(shelf, tmp_path):
    """SIGTERM reaches the launcher and then both processes, in the middle of some step of each."""
    more = {
        "model_name_or_path": str(shelf / "plain"),
        "max_steps": 120,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "per_device_eval_batch_size": 3,
    }
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    two = {**more, "per_device_train_batch_size": 2}
    launched = start(shelf, tmp_path / "two", launcher=launcher, **two)
    wait_for_step(launched, tmp_path / "two", 20)
    launched.send_signal(signal.SIGTERM)
    said = launched.communicate(timeout=900)[0]
    assert launched.returncode != 0
    assert said.count("stopped by SIGTERM after step") == 1, said
    again = start(shelf, tmp_path / "two", launcher=launcher, resume=True, **two)
    said = again.communicate(timeout=900)[0]
    assert again.returncode == 0, said
    distill(Recipe.from_dict(values(shelf, tmp_path / "one", **more)))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert gap(first, second) < 1e-4  # a hundred steps of Adam magnify the last digits
    mine, theirs = records(tmp_path / "one"), records(tmp_path / "two")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for name in ("eval_loss", "eval_forward_kl", "eval_perplexity"):
        assert theirs[-1][name] == pytest.approx(mine[-1][name], rel=1e-4)


# ---- output files ----


@pytest.fixture(scope="module")
def short(shelf, tmp_path_factory):
    output = tmp_path_factory.mktemp("short") / "run"
    made = distill(Recipe.from_dict(values(shelf, output, ce_weight=0.1, max_steps=4)))
    return made, output


def test_everything_needed_to_repeat_the_run_is_there(short, shelf):
    made, output = short
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "report.html", "model.safetensors", "config.json"} <= {
        path.name for path in output.iterdir()
    }
    asked = Recipe.from_dict(values(shelf, output, ce_weight=0.1, max_steps=4))
    assert Recipe.from_yaml(output / "recipe.yaml").resolved() == asked.resolved()
    facts = json.loads((output / "run.json").read_text())
    assert facts["objective"] == made.loss.objective.spec.formula()
    assert facts["data_fingerprint"] == made.train_dataset.fingerprint
    assert facts["train_rows"] + facts["held_out_rows"] == 30
    assert facts["held_out_rows"] == 6
    assert facts["plan"]["rows_per_chunk"] > 0
    assert facts["versions"].keys() == {"abkd", "torch", "transformers", "python"}
    assert facts["student"] == str(shelf / "student")
    assert AutoModelForCausalLM.from_pretrained(output).config.model_type == "gpt2"
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tokenizer().get_vocab()
    held_out = [line for line in records(output) if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [0, 4]
    assert "<html" in (output / "report.html").read_text()


def test_a_used_directory_is_not_overwritten_unless_told(short, shelf, tmp_path):
    _, output = short
    recipe = Recipe.from_dict(values(shelf, output, max_steps=1))
    with pytest.raises(OutputDirError, match="is in use"):
        distill(recipe)
    old = shutil.copytree(output, tmp_path / "run")
    distill(Recipe.from_dict(values(shelf, old, max_steps=1, overwrite_output_dir=True)))
    assert [record["step"] for record in records(old) if "eval_loss" in record] == [0, 1]
    assert "overwrite_output_dir: true" not in (old / "recipe.yaml").read_text()


@pytest.mark.parametrize("changed", ["teacher", "layers", "width", "tied"])
def test_other_models_in_the_same_folders_are_noticed_on_resume(changed, shelf, tmp_path):
    save_models(tmp_path, student=llama(0), teacher=llama(1))
    options = {"model_name_or_path": str(tmp_path / "student"), "teacher_model_name_or_path": str(tmp_path / "teacher")}
    recipe = Recipe.from_dict(values(shelf, tmp_path / "run", max_steps=3, save_steps=2, **options))
    distill(recipe)
    (tmp_path / "run" / "result.json").unlink()  # as if it had died before it was finished
    other = {"layers": {"layers": 2}, "width": {"width": 64}, "tied": {"tie_word_embeddings": True}}
    if changed == "teacher":
        save_models(tmp_path, teacher=llama(2))
        says = "was started with another teacher .the weights of .* have changed since"
    else:
        save_models(tmp_path, student=llama(0, **other[changed]))
        says = "it belongs to another student "
    with pytest.raises(OutputDirError, match=says):
        distill(recipe, resume=True)


def test_other_data_is_noticed_on_resume(shelf, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text((shelf / "data.jsonl").read_text())
    recipe = Recipe.from_dict(values(shelf, tmp_path / "run", train_file=str(data), max_steps=3))
    distill(recipe)
    (tmp_path / "run" / "result.json").unlink()  # as if it had died before it was finished
    data.write_text(data.read_text().replace("capital", "list"))
    with pytest.raises(OutputDirError, match="was started with other training data"):
        distill(recipe, resume=True)


# ---- started, finished, resumed


@pytest.fixture
def again(short, tmp_path) -> Path:
    """A copy of a finished run of four steps, with a checkpoint at its end."""
    return shutil.copytree(short[1], tmp_path / "run")


def test_a_finished_run_that_is_resumed_changes_nothing(again, shelf, caplog):
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO, "abkd"):
        assert distill(Recipe.from_dict(values(shelf, again, ce_weight=0.1, max_steps=4)), resume=True) is None
    assert "is already finished; nothing to do" in caplog.text
    assert {path: path.read_bytes() for path in again.rglob("*") if path.is_file()} == before


def test_a_run_that_died_at_its_end_is_evaluated_once_and_finished(again, short, shelf, caplog):
    """Between the last checkpoint and result.json; changed display settings are accepted, reported and recorded."""
    (again / "result.json").unlink()
    (again / "model.safetensors").unlink()
    asked = values(shelf, again, ce_weight=0.1, max_steps=4, logging_steps=2)
    with caplog.at_level(logging.INFO, "abkd"):
        distill(Recipe.from_dict(asked), resume=True)
    assert records(again) == records(short[1])
    assert gap(load_file(again / "model.safetensors"), load_file(short[1] / "model.safetensors")) == 0.0
    assert "none of which affects the weights: logging_steps was 1, now 2" in caplog.text
    told = json.loads((again / "run.json").read_text())
    assert told["resumed"] == [{"from": "checkpoint-4", "changed": {"logging_steps": [1.0, 2.0]}}]
    assert Recipe.from_yaml(again / "recipe.yaml").config["logging_steps"] == 2


def test_another_recipe_is_not_resumed(again, shelf):
    asked = values(shelf, again, ce_weight=0.1, max_steps=4, dataloader_drop_last=True)
    with pytest.raises(OutputDirError, match="dataloader_drop_last was null, now True"):  # other batches
        distill(Recipe.from_dict(asked), resume=True)
    asked = values(shelf, again, ce_weight=0.1, max_steps=4, learning_rate=0.1, divergence="ReverseKL()")
    before = (again / "recipe.yaml").read_bytes()
    with pytest.raises(OutputDirError, match=r"learning_rate was 0.003, now 0.1.*divergence was .* now ReverseKL\(\)"):
        distill(Recipe.from_dict(asked), resume=True)
    assert (again / "recipe.yaml").read_bytes() == before


@pytest.mark.parametrize("plain", ["run.json", "recipe.yaml", "metrics.jsonl", "result.json", ".abkd_files.json"])
@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\x00", b"[3]\n"])
def test_damaged_records_do_not_stop_a_resume(again, shelf, plain, text, monkeypatch):
    """All errors that are found before a model is loaded."""
    (again / "result.json").unlink()
    (again / plain).write_bytes(text)

    def reached(*_: Any) -> Any:
        raise EOFError

    monkeypatch.setattr("abkd.run.load_data", reached)
    with pytest.raises(EOFError):
        distill(Recipe.from_dict(values(shelf, again, ce_weight=0.1, max_steps=4)), resume=True)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(again, shelf, caplog):
    for path in again.iterdir():
        if path.name not in ("recipe.yaml", "run.json", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (again / "checkpoint-4").mkdir()
    (again / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.INFO, "abkd"):
        distill(Recipe.from_dict(values(shelf, again, max_steps=1)), resume=True)
    assert "ended before its first checkpoint; starting over at step 0" in caplog.text
    assert [record["step"] for record in records(again) if "eval_loss" in record] == [0, 1]
    assert not (again / "checkpoint-4").exists()


def test_nothing_is_removed_before_everything_is_loaded(again, shelf, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": null}\n')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    before = sorted(again.rglob("*"))
    for change in ({"train_file": "bad.jsonl"}, {"teacher_model_name_or_path": "broken"}):
        asked = {name: str(tmp_path / place) for name, place in change.items()}
        with pytest.raises(AbkdError) as refused:
            distill(Recipe.from_dict(values(shelf, again, overwrite_output_dir=True, **asked)))
        assert refused.value.exit_code == 2
        assert sorted(again.rglob("*")) == before


def test_a_refused_run_leaves_no_folder(shelf, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": null}\n')
    with pytest.raises(DataError):
        distill(Recipe.from_dict(values(shelf, tmp_path / "deep" / "run", train_file=str(tmp_path / "bad.jsonl"))))
    assert not (tmp_path / "deep").exists()


def test_one_run_at_a_time(again, shelf, tmp_path):
    """While one run holds the folder, fresh or resumed, another is refused before a model is loaded."""
    code = (
        "import sys, pathlib, time; from abkd.output_dir import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])): print('here', flush=True); sys.stdin.read()"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    for output, resume in ((again, True), (tmp_path / "new", False)):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(output)],
            env=paths,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "here\n"
            with pytest.raises(OutputDirError, match=f"is in use by process {other.pid} on "):
                distill(Recipe.from_dict(values(shelf, output, ce_weight=0.1, max_steps=4)), resume=resume)
            other.communicate()


@pytest.mark.slow
def test_the_line_in_the_report_repeats_the_run(shelf, tmp_path, monkeypatch):
    """Pasted into a shell in another directory, with relative paths and a name that a shell would split."""
    for name in ("student", "teacher"):
        (tmp_path / name).symlink_to(shelf / name)
    shutil.copy(shelf / "data.jsonl", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher", "train_file": "data.jsonl"}
    distill(Recipe.from_dict(values(shelf, Path("run #1; 'a'"), max_steps=2) | names))
    page = html.unescape((tmp_path / "run #1; 'a'" / "report.html").read_text())
    (line,) = re.findall(r"<pre>(.*abkd distill.*)</pre>", page)
    (tmp_path / "abkd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m abkd "$@"\n')
    (tmp_path / "abkd").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path / "elsewhere",
        env={
            **os.environ,
            "PATH": path,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run #1; 'a'", "run #1; 'a'-again"))
    assert gap(first, second) == 0.0


def test_adapters_plain_text_and_no_held_out_rows(shelf, tmp_path):
    recipe = Recipe.from_dict(
        values(
            shelf,
            tmp_path / "run",
            use_peft=True,
            lora_r=4,
            lora_target_modules=["c_attn"],
            pretrain_file=str(shelf / "text.jsonl"),
            lm_coef=0.5,
            eval_fraction=0.0,
            max_steps=2,
        )
    )
    made = distill(recipe)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert made.eval_dataset is None
    assert "CE(plain text)" in json.loads((tmp_path / "run" / "run.json").read_text())["objective"]


@pytest.mark.parametrize(("row", "said"), [({"txt": "a"}, "got none"), ({"text": ["a"]}, "got a list")], ids=str)
def test_plain_text_that_is_none_is_named_with_its_line(row, said, shelf, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "good"}\n' + json.dumps(row) + "\n")
    plain = {"pretrain_file": str(tmp_path / "text.jsonl"), "lm_coef": 0.5}
    with pytest.raises(DataError, match=rf"text\.jsonl, line 2: expected a string, {said}"):
        distill(Recipe.from_dict(values(shelf, tmp_path / "run", **plain)))


def test_a_student_is_saved_in_the_type_of_its_folder(shelf, tmp_path):
    small, out = tmp_path / "small", tmp_path / "out"
    llama(0).bfloat16().save_pretrained(small)
    tokenizer().save_pretrained(small)
    asked = {"model_name_or_path": str(small), "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trained = distill(Recipe.from_dict(values(shelf, out, **asked)))
    types = [load_file(each / "model.safetensors")["lm_head.weight"].dtype for each in (out, out / "checkpoint-2")]
    assert types == [torch.bfloat16, torch.float32]
    assert trained.model.dtype == torch.float32
    rounded = [line for line in records(out) if "eval_forward_kl" in line and line["step"] == 2]
    assert len({line["eval_forward_kl"] for line in rounded}) == 2  # as it was trained, then as it is saved
