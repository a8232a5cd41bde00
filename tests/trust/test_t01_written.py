"""Bit-exact resume with sequences generated during training: by the student, its teacher, from a buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from abkd import DistillTrainer
from training_parts import (
    EVERY_THIRD,
    FROM_BUFFER,
    SHORT,
    StopAfter,
    by_family,
    config,
    gap,
    llama,
    lora,
    rows,
    tokenizer,
    trainer,
    weights,
)

SOURCES: dict[str, dict[str, Any]] = {
    "on-policy": {"source": "StudentSamples(temperature=0.9, top_p=0.95)"},
    "half": {"lmbda": 0.5, "gradient_accumulation_steps": 2},
    "several": {"source": "StudentSamples()", "num_generations": 2},
    "replay": {"source": FROM_BUFFER, "gradient_accumulation_steps": 2},
    "adaptive": {
        "source": f"Mix(Adaptive(start=0.4, step=0.3, tolerance=0.0), {FROM_BUFFER}, Dataset())",
        "eval_dataset": rows(3),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 0.2,  # so that the loss sometimes rises
    },
    "teacher's and student's": {
        "source": "Union(TeacherSamples(), StudentSamples())",
        "terms": "[Term(SkewForwardKL(0.5), origin='teacher', weight=0.5, sequence_mixture=True), "
        "Term(SkewReverseKL(0.5), origin='student', weight=anneal(0.5, 1.0), sequence_mixture=True)]",
    },
    "stages": {"source": "stages((0.3, Dataset()), (0.7, StudentSamples()))"},
    "privileged": {"source": "Privileged(StudentSamples(), context='Say bye. ')"},
    "average of the student": {"teacher": "EMA(decay=0.6)", "source": "Privileged(Dataset(), context='bye ')"},
    "snapshot": {"teacher": "Snapshot(every=2)", "source": "Privileged(StudentSamples(), context='bye ')"},
}


def build(path: Path, student: Any, options: dict[str, Any], **more: Any) -> Any:
    options = {**SHORT, **options, **more}
    made_of_student = str(options.get("teacher", "")).startswith(("EMA", "Snapshot", "AdapterOff"))
    if made_of_student:
        own = {k: options.pop(k) for k in ("eval_dataset", "callbacks", "peft_config") if k in options}
        return DistillTrainer(
            student, None, config(path, **options), train_dataset=rows(), processing_class=tokenizer(), **own
        )
    return trainer(path, student, **options)


@by_family(SOURCES, "on-policy", "replay")
def test_resume_is_exact(tmp_path, case, family):
    """Buffers, thresholds and averages are in the checkpoint; random choices and samples are functions of the step."""
    options = {**EVERY_THIRD, **SOURCES[case]}
    start = family(0)
    before = weights(start)
    whole = build(tmp_path / "whole", start, options)
    whole.train()
    assert gap(whole.model, before) > 0.0
    build(tmp_path / "parts", family(0), options, callbacks=[StopAfter(3)]).train()
    torch.manual_seed(99)
    resumed = build(tmp_path / "parts", family(5), options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert gap(whole.model, resumed.model) == 0.0
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()][:-1]
        for name in ("whole", "parts")
    )
    for mine, theirs in zip(first[3:], second[3:], strict=True):
        for name in {"loss", "divergence", "completion_length", "mix_share"} & mine.keys():
            assert mine[name] == theirs[name], (mine["step"], name)


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_the_adapters_base_teaches_and_resumes(tmp_path):
    options = {**EVERY_THIRD, "teacher": "AdapterOff()", "source": "Privileged(StudentSamples(), context='bye ')"}
    states = []
    for name, stop in (("whole", []), ("parts", [StopAfter(3)])):
        build(tmp_path / name, llama(0), options, peft_config=lora(), callbacks=stop).train()
    for name in ("whole", "parts"):
        again = build(tmp_path / name, llama(0), options, peft_config=lora())
        again.train(resume_from_checkpoint=True)
        states.append(weights(again.model))
    assert gap(*states) == 0.0
