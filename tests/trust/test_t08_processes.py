"""Two processes, replicated (DDP) or sharded (FSDP2), train and evaluate like one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from two_processes import IMAGES, SHARDED, VARIANTS, build

from abkd.errors import OutputDirError
from training_parts import gap, llama, rows, save_models, teacher, trainer, weights, write_rows

# accelerate shards on CPUs, and transformers reads the optimizer of several CPU processes, only since then
since_5 = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="needs transformers 5")
TESTS = Path(__file__).resolve().parents[1]


def launch(
    *words: str | Path, processes: int = 2, at: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    paths = [str(TESTS), *(entry for entry in sys.path if entry)]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            *map(str, words),
        ],
        cwd=at,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def compare(path: Path, variant: str, alone: Path, tolerance: float) -> None:
    one = build(alone, variant, 1)
    one.train()
    expected = one.evaluate()
    directory = path / variant.replace(" ", "_")
    assert gap(load_file(directory / "weights.safetensors"), weights(one.model)) < tolerance
    found = json.loads((directory / "eval.json").read_text())
    of_task = ("accuracy", "teacher_accuracy") if variant in IMAGES else ("perplexity", "teacher_perplexity")
    for name in ("loss", "forward_kl", "reverse_kl", "top1_agreement", *of_task):
        assert found[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-5), name
    theirs, mine = (records(where) for where in (directory, Path(one.args.output_dir)))
    for record, other in zip(mine, theirs, strict=True):
        for name in ("loss", "grad_norm", "divergence", "cross_entropy", "top1_agreement"):
            assert other[name] == pytest.approx(record[name], rel=1e-5), (variant, name)


def records(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def loads(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert gap(model, load_file(directory / "weights.safetensors")) == 0.0
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


SCRIPT = TESTS / "trust" / "two_processes.py"
IN_SHARDS = ("plain", "accumulated", "written", "terms")
RESUMED = ("resumed", "resumed terms")


@pytest.fixture(scope="module")
def replicas(tmp_path_factory) -> Path:
    """All variants, in two processes that are launched once: starting takes longer than training."""
    path = tmp_path_factory.mktemp("replicas")
    done = launch(SCRIPT, path, *VARIANTS, *IMAGES)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    done = launch(SCRIPT, path, *IN_SHARDS, *RESUMED, SHARDED="layers")
    assert done.returncode == 0, done.stderr[-4000:]
    return path


def test_two_replicas_equal_one_process(replicas, tmp_path):
    for variant in (*(name for name in VARIANTS if name not in RESUMED), *IMAGES):
        compare(replicas, variant, tmp_path, 2e-6)
    loads(replicas / "plain")


@since_5
@pytest.mark.slow
def test_two_shards_equal_one_process(shards, tmp_path):
    for variant in IN_SHARDS:
        compare(shards, variant, tmp_path, 2e-6)
    loads(shards / "plain")


@since_5
@pytest.mark.long
@pytest.mark.parametrize("sharded", [name for name in SHARDED if name != "layers"])
def test_two_shards_of_another_kind_equal_one_process(tmp_path, sharded):
    done = launch(SCRIPT, tmp_path / "two", *IN_SHARDS, SHARDED=sharded)
    assert done.returncode == 0, done.stderr[-4000:]
    for variant in IN_SHARDS:
        compare(tmp_path / "two", variant, tmp_path / "one", 2e-6)
    loads(tmp_path / "two" / "plain")


@since_5
@pytest.mark.slow
@pytest.mark.parametrize("variant", RESUMED)
@pytest.mark.parametrize("sharded", ["", "layers"], ids=["replicas", "shards"])
def test_two_processes_resume_exactly(request, tmp_path, sharded, variant):
    begun, name = request.getfixturevalue("shards" if sharded else "replicas"), variant.replace(" ", "_")
    shutil.copytree(begun / name, tmp_path / name)
    directory = tmp_path / name
    whole, log = load_file(directory / "weights.safetensors"), records(directory)
    left = sorted(path.name for path in directory.glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    for path in left[1:]:  # the newest is resumed from; that of the last step would leave nothing to train
        shutil.rmtree(directory / path)
    done = launch(SCRIPT, tmp_path, variant, SHARDED=sharded)
    assert done.returncode == 0, done.stderr[-4000:]
    assert gap(load_file(directory / "weights.safetensors"), whole) == 0.0
    assert [line["loss"] for line in records(directory)] == [line["loss"] for line in log]
    alone = tmp_path / "alone"
    shutil.copytree(directory / "checkpoint-2", alone / name / "checkpoint-2")
    one = build(alone, variant, 1)
    if sharded:
        with pytest.raises(OutputDirError, match="it was saved in shards"):
            one.train(resume_from_checkpoint=True)
    else:
        one.train(resume_from_checkpoint=True)
        assert gap(one.model, whole) < 2e-6


def test_a_checkpoint_in_shards_is_refused_by_one_process(tmp_path):
    """transformers would reset the optimizer, or fail."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer(tmp_path, **options).train()
    (tmp_path / "checkpoint-1" / "pytorch_model_fsdp.bin").touch()
    with pytest.raises(OutputDirError, match=r"saved in shards \(FSDP\), but this run is not; launch it as before"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=True)


@since_5
@pytest.mark.slow
def test_two_processes_from_the_shell(tmp_path):
    save_models(tmp_path, student=llama(0), teacher=teacher())
    write_rows(tmp_path / "data.jsonl", rows(12))
    flags = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "train_file": "data.jsonl",
        "output_dir": "out",
        "max_steps": "2",
        "per_device_train_batch_size": "2",
        "use_cpu": "true",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    done = launch("-m", "abkd", "distill", *words, at=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 32
