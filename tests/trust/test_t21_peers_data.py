"""A JSONL of prompts and one of conversations train unchanged in TRL and here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tiny_parts import make_chatml
from training_parts import WORDS, gap, llama, teacher, tokenizer, trainer

ROWS: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"prompt": f"What is {word}? "} for word in WORDS],
    "messages": [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": f"the {word}"}]}
        for word in WORDS
    ],
}
SHORT = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True, "report_to": []}


@pytest.fixture(params=ROWS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[request.param]))
    return path


def test_ours_trains_on_it(file, tmp_path):
    prompts = {"source": "StudentSamples()", "max_completion_length": 5}
    own: dict[str, Any] = prompts if file.stem == "prompt" else {"apply_chat_template": True}
    made = trainer(tmp_path / "run", data=str(file), **own, **SHORT)
    made.train()
    assert gap(made.model, llama(0)) > 0.0


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_on_it(file, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl", reason="the peer is no part of the gate: pip install 'abkd[bench]'")
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    options = {**SHORT, "output_dir": str(tmp_path / "trl"), "save_strategy": "no", "bf16": False}
    options["gradient_checkpointing"] = False
    if file.stem == "prompt":
        from trl import DistillationConfig, DistillationTrainer

        make, args = DistillationTrainer, DistillationConfig(**options, max_completion_length=5)
    else:
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        make, args = GKDTrainer, GKDConfig(**options, lmbda=0.0, max_length=64)
    words = tokenizer() if file.stem == "prompt" else make_chatml()
    made: Any = make(model=llama(0), teacher_model=teacher(), args=args, train_dataset=rows, processing_class=words)
    made.train()
    assert gap(made.model, llama(0)) > 0.0
