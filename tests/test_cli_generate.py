"""``abkd generate`` from the shell: killed, shared by processes, refused, and read by a later run."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abkd.cli import app
from abkd.data import load_rows, prepare_dataset
from abkd.sources import Server
from training_parts import llama, save_models, teacher, tokenizer

TESTS = Path(__file__).resolve().parent
PROMPTS = [f"What is {first} of {second}?" for first in ("list", "items", "a", "function") for second in "abcdefghij"]


class Shell:
    """A directory with models, data and a recipe; ``abkd`` runs in this process."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.capsys = path, capsys
        writer = teacher()
        writer.generation_config.eos_token_id = [1, *range(100, 110)]
        save_models(path, student=llama(0), teacher=writer)
        self.data([{"prompt": prompt} for prompt in PROMPTS])
        values = {
            "model_name_or_path": "./student",
            "teacher_model_name_or_path": "./teacher",
            "train_file": "data.jsonl",
            "eval_fraction": 0,
            "output_dir": "out",
            "source": "TeacherSamples(temperature=0)",
            "max_length": 64,
            "max_completion_length": 24,
            "per_device_eval_batch_size": 16,
            "use_cpu": True,
        }
        (path / "recipe.yaml").write_text(yaml.safe_dump(values))

    def data(self, rows: list[dict[str, str]]) -> None:
        (self.path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def __call__(self, verb: str, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([verb, "recipe.yaml", *words])
        return int(ended.value.code or 0), *self.capsys.readouterr()

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        paths = [str(TESTS), *(entry for entry in sys.path if entry)]
        return subprocess.Popen(
            [sys.executable, "-m", "abkd", "generate", "recipe.yaml", *words],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def abkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("ABKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.long
def test_it_goes_on_after_a_kill_and_with_more_processes(abkd: Shell) -> None:
    """One process is killed while it writes, two independent ones finish its work: the file equals that of one run."""
    part = abkd.path / "killed.jsonl.part-0"
    one = abkd.start("--output_file", "killed.jsonl", "--per_device_eval_batch_size", "1")
    wait_for(lambda: part.is_file() and part.read_bytes().count(b"\n") >= 5, one)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    before = part.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert 5 <= whole.count(b"\n") < len(PROMPTS)
    part.write_bytes(whole + b'{"prompt": "What is li')  # the kill may have been between two rows

    both = [abkd.start("--output_file", "killed.jsonl", RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    ends = [(process.communicate(timeout=900), process.returncode) for process in both]
    assert [code for _, code in ends] == [0, 0], ends
    told = "".join(out for (out, _), _ in ends)
    assert "The teacher's text is in killed.jsonl" in told

    code, out, _ = abkd("generate", "--output_file", "alone.jsonl")
    assert code == 0
    assert f"prompts  {len(PROMPTS)}" in out
    found, alone = ((abkd.path / name).read_bytes() for name in ("killed.jsonl", "alone.jsonl"))
    assert found == alone
    assert set(whole.splitlines()) <= set(found.splitlines())
    assert [json.loads(line)["prompt"] for line in found.splitlines()] == PROMPTS
    assert not list(abkd.path.glob("*part*"))
    rows = prepare_dataset(load_rows("killed.jsonl"), tokenizer(), max_length=64)
    assert len(rows) == len(PROMPTS)


def test_distill_reads_what_generate_wrote(abkd: Shell) -> None:
    code, out, err = abkd("generate")
    assert code == 0, err
    assert f"the teacher generates answers to {len(PROMPTS)} prompts" in err
    (file,) = (abkd.path / "cache" / "teacher-text").glob("*.jsonl")
    assert str(file) in out
    before = file.read_bytes()
    code, _, err = abkd("generate")
    assert (code, "the teacher generates" in err) == (0, False)
    code, _, err = abkd("distill", "--max_steps", "1", "--per_device_train_batch_size", "2")
    assert code == 0, err
    assert "the teacher generates" not in err
    assert file.read_bytes() == before
    assert sorted(file.parent.iterdir()) == [file.with_suffix(".json"), file]


def test_the_first_teacher_of_the_recipe_says_how(abkd: Shell) -> None:
    """Its context too: with a context it generates other text than without."""
    texts = {}
    for name, source in {
        "plain": "TeacherSamples(temperature=0)",
        "mixed": "Mix(0.5, StudentSamples(), TeacherSamples(temperature=0))",
        "told": "Privileged(TeacherSamples(temperature=0), context='be nice ')",
        "default": "Dataset()",
    }.items():
        code, _, err = abkd("generate", "--source", source, "--output_file", f"{name}.jsonl")
        assert code == 0, err
        texts[name] = [json.loads(line) for line in (abkd.path / f"{name}.jsonl").read_bytes().splitlines()]
        about = json.loads((abkd.path / f"{name}.json").read_bytes())["about"]
        assert about["temperature"] == (1.0 if name == "default" else 0.0)
    assert texts["plain"] == texts["mixed"]
    assert [row["prompt"] for row in texts["told"]] == ["be nice " + prompt for prompt in PROMPTS]
    assert texts["default"] != texts["plain"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_file", "text.txt"], "file must end in .jsonl"),
        (["--output_file", "data.jsonl/text.jsonl"], "data.jsonl"),
        (["--output_file", "a" * 300 + ".jsonl"], "aaa"),
        (["--output_file", "data.jsonl"], "data.jsonl is in use, without a data.json"),
        (
            ["--teacher_model_name_or_path", "[./teacher, ./student]", "--teacher", "Ensemble()"],
            "needs one teacher, got 2",
        ),
        (["--generation_kwargs", "{temprature: 1}"], "'temprature' is not supported"),
        (["--teacher_model_name_or_path", "./nowhere"], "there is no model directory './nowhere'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_meant_is_said_before_anything_is_written(abkd: Shell, words: list[str], message: str) -> None:
    before = (abkd.path / "data.jsonl").read_bytes()
    code, _, err = abkd("generate", *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert (abkd.path / "data.jsonl").read_bytes() == before
    assert not (abkd.path / "cache").exists()


def test_text_of_other_settings_is_refused(abkd: Shell) -> None:
    assert abkd("generate", "--output_file", "text.jsonl")[0] == 0
    code, _, err = abkd("generate", "--output_file", "text.jsonl", "--max_completion_length", "8")
    assert code == 2
    assert "(max_completion_length: expected 8, got 24)" in err


def test_a_server_that_is_not_there_is_exit_code_5(abkd: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    import abkd.tasks._writer as command

    monkeypatch.setattr(command, "Server", functools.partial(Server, pause=0.001, tries=3))
    url: Any = "http://127.0.0.1:9"
    code, _, err = abkd("generate", "--teacher_model_server_url", url, "--output_file", "text.jsonl")
    assert code == 5
    assert "gave no answer in 3 attempts" in err
