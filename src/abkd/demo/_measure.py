"""The demo's evaluation: answers of teacher and students to held-out questions, greedy and sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abkd.data import load_rows
from abkd.demo._show import stage
from abkd.evaluation import answer_metrics
from abkd.metrics import METRICS
from abkd.models.loading import load_causal_lm, load_tokenizer
from abkd.precision import bf16_pays
from abkd.report.files import RunFiles, held_out_values

_NEW_TOKENS = 64  # the longest reference has about as many


@dataclass
class Examiner:
    """Held-out questions with their reference answers; keeps the greedy answers of each model."""

    tokenizer_path: str
    questions: Sequence[Any]
    seeds: Sequence[int]
    answers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """The reference answer of each question."""
        return [row["completion"][-1]["content"] for row in self.questions]

    @property
    def prompts(self) -> list[str]:
        """The text of each question, without system turn and template."""
        return [row["prompt"][-1]["content"] for row in self.questions]

    def row(self, name: str, model_path: str | Path) -> dict[str, Any]:
        """ROUGE-L of greedy and sampled answers, parameters and speed of the model at ``model_path``."""
        model = load_causal_lm(str(model_path), what="model", dtype="bfloat16" if bf16_pays() else "float32")
        tokenizer = load_tokenizer(self.tokenizer_path, what="tokenizer")
        prompts = [
            tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
            for row in self.questions
        ]
        with stage(f"{name}: answering {len(prompts)} held-out questions") as bar:
            self.answers[name], found = answer_metrics(
                model,
                tokenizer,
                prompts,
                self.references,
                max_new_tokens=_NEW_TOKENS,
                seeds=self.seeds,
                progress=bar,
            )
        return {"name": name, **found, "parameters": model.num_parameters()}


def distances(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``(before, after, teacher)``: the metrics of the first and the last evaluation of a run, and the teacher's."""
    evaluations = RunFiles.read(run_dir).evaluations
    (before, _), (after, teacher) = map(held_out_values, (evaluations[0], evaluations[-1]))
    ideal = {name: METRICS[name].ideal for name in after if name in METRICS and METRICS[name].ideal is not None}
    return before, after, {**teacher, **ideal}


def write_rows(rows: Sequence[Any], path: Path) -> Path:
    """Write rows as JSONL, like a user's own data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def token_ids(path: Path, tokenizer_path: str, limit: int) -> list[list[int]]:
    """The token ids of the first rows of a file, to measure the layers on."""
    from abkd.data import prepare_dataset

    tokenizer = load_tokenizer(tokenizer_path, what="tokenizer")
    dataset = prepare_dataset(load_rows(path)[:limit], tokenizer, max_length=512)
    return [example["input_ids"] for example in dataset]
