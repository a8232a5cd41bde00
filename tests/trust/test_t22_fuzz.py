"""Readers of untrusted files: a value or a one-sentence error, never a traceback, a hang or executed text.

Notation, YAML, tables and images are fuzzed in their own tests; docs/trust.md lists them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cache_parts import build, data, setting, view
from fuzz_parts import changed, changed_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkd.errors import AbkdError
from abkd.models.loading import load_causal_lm
from abkd.output_dir._contents import contents
from abkd.report import render_report
from abkd.report.content import CLIP
from abkd.report.results import read_result
from abkd.report.sweep import summary_of
from abkd.storage import _SEAL, _seal, read_checksummed, write_checksummed
from abkd.teachers import TopKCache
from abkd.trainer import _checkpoints, read_record
from training_parts import llama, lora, rows, tokenizer, trainer

pytestmark = pytest.mark.filterwarnings("ignore")

RUN = {"text run": False}
RUNNING = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo")


def read_cache(folder: Path) -> None:
    reader = TopKCache(k=4, path=str(folder)).open(setting())
    reader.classes = 340
    reader.check()
    reader(view([data(2)[0], data(2)[1]]))


class Target(NamedTuple):
    """A file and its reader; ``sealed``: a forger can give it a valid checksum."""

    file: str
    read: Callable[[Path], Any]
    sealed: bool = False


TARGETS = [
    Target("run/checkpoint-2/abkd_manifest.json", lambda run: _checkpoints.newest_whole(run / "run")),
    Target("run/run.json", lambda run: (read_record(run / "run"), render_report(run / "run"))),
    Target("run/metrics.jsonl", lambda run: (read_result(run / "run"), render_report(run / "run"))),
    Target("run/recipe.yaml", lambda run: render_report(run / "run")),
    Target("sweep/sweep.json", lambda run: render_report(run / "sweep")),
    Target("run/result.json", lambda run: read_checksummed(run / "run" / "result.json"), sealed=True),
    Target("run/.abkd_files.json", lambda run: contents(run / "run")),
    Target("cache/manifest.json", lambda run: read_cache(run / "cache"), sealed=True),
    Target("cache/rows-0.json", lambda run: read_cache(run / "cache"), sealed=True),
    Target("cache/rows-0.safetensors", lambda run: read_cache(run / "cache")),
    Target("adapter/adapter_config.json", lambda run: load_causal_lm(str(run / "adapter"), what="model_name_or_path")),
]


def sweep_of(result: dict[str, Any]) -> dict[str, Any]:
    """Two settings with two seeds, one of which failed."""
    runs = [{"seed": 1, "directory": "a/seed-1", "result": result}, {"seed": 2, "directory": "a/seed-2"}]
    failed = [{"seed": seed, "directory": f"b/seed-{seed}", "failed": "not finite"} for seed in (1, 2)]
    found = [{"name": name, "runs": each, "summary": summary_of(each)} for name, each in (("a", runs), ("b", failed))]
    known = {"version": "1", "task": CLIP, "working_directory": "/", "unlabelled_classes": ["all"]}
    return {**known, "seeds": [1, 2], "grid": {"divergence": ["a", "b"]}, "settings": found}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind, as abkd writes it."""
    folder = tmp_path_factory.mktemp("shelf")
    made = trainer(folder / "run", max_steps=2, save_strategy="steps", save_steps=2, eval_dataset=rows(2))
    made.train()
    made.evaluate()
    (folder / "run" / "run.json").write_text(
        json.dumps({"objective": "KL", "train_rows": 3, "plan": {}, "dropped": {}})
    )
    (folder / "run" / "recipe.yaml").write_text("model_name_or_path: a\ndivergence: ForwardKL()\n")
    (folder / "run" / ".abkd_files.json").write_text('["run.json", "metrics.jsonl"]')
    write_checksummed(folder / "run" / "result.json", read_result(folder / "run"))
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text(json.dumps(sweep_of(read_result(folder / "run"))))
    build(TopKCache(k=4, path=str(folder / "cache")), data(2))
    for file in list((folder / "cache").glob("rows-*")):
        file.rename(file.with_stem("rows-0"))
    llama(0).save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    config = lora()
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).save_pretrained(folder / "adapter")
    return folder


def watch(event: str, _: Any) -> None:
    if event in RUNNING:
        RUN["text run"] = True


sys.addaudithook(watch)


def try_one(shelf: Path, target: Target, content: bytes) -> None:
    path = shelf / target.file
    before = path.read_bytes()
    RUN["text run"] = False
    try:
        path.write_bytes(content)
        with suppress(AbkdError):
            target.read(shelf)
    finally:
        path.write_bytes(before)
    assert not RUN["text run"]


def cases(target: Target, content: bytes) -> st.SearchStrategy[bytes]:
    """The changed file; with a new checksum, if a forger can compute one."""
    if not target.sealed:
        return changed(content)
    values = {name: value for name, value in json.loads(content).items() if name != _SEAL}

    def forged(tree: Any) -> bytes:
        return json.dumps({**tree, _SEAL: _seal(tree)} if isinstance(tree, dict) else tree).encode()

    return st.one_of(changed(content), changed_json(values).map(forged))


def fuzz(shelf: Path, target: Target, many: int) -> int:
    """How many files were tried."""
    tried = []

    @settings(
        max_examples=many, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases(target, (shelf / target.file).read_bytes()))
    def one(content: bytes) -> None:
        tried.append(content)
        try_one(shelf, target, content)

    one()
    return len(tried)


def test_what_we_wrote_ourselves_is_read(shelf):
    for target in TARGETS:
        target.read(shelf)
    assert _checkpoints.corruption(shelf / "run" / "checkpoint-2") is None


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_some_changes_of(shelf, target):
    fuzz(shelf, target, 12)


SHOWN = ("run/run.json", "run/metrics.jsonl", "run/recipe.yaml", "sweep/sweep.json")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_many_changes_of(shelf, target):
    many = 1500 if target.file not in SHOWN else 150  # a report takes a third of a second
    print(f"{target.file}: {fuzz(shelf, target, many)} cases")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "target", [each for each in TARGETS if each.file.endswith(".json")], ids=lambda each: each.file
)
def test_a_pipe_in_its_place_is_not_waited_for(shelf, tmp_path, target):
    path = shelf / target.file
    path.rename(tmp_path / "kept")
    try:
        os.mkfifo(path)
        with suppress(AbkdError):
            target.read(shelf)
    finally:
        path.unlink()
        shutil.move(tmp_path / "kept", path)
