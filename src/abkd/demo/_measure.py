"""The demo's evaluation: answers of teacher and students to held-out questions, greedy and sampled."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abkd.data import load_rows
from abkd.demo._show import stage
from abkd.generation import generate_answers, rouge_l
from abkd.models.loading import load_causal_lm, load_tokenizer
from abkd.precision import bf16_pays

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
        scores: list[float] = []
        with stage(f"{name}: answering {len(prompts)} held-out questions") as bar:
            began = time.monotonic()
            greedy = generate_answers(model, tokenizer, prompts, max_new_tokens=_NEW_TOKENS, progress=bar)
            seconds = time.monotonic() - began
            for seed in self.seeds:
                sampled = generate_answers(
                    model, tokenizer, prompts, max_new_tokens=_NEW_TOKENS, do_sample=True, seed=seed, progress=bar
                )
                scores.append(rouge_l(sampled, self.references))
        self.answers[name] = greedy
        written = sum(len(tokenizer(answer)["input_ids"]) + 1 for answer in greedy)
        return {
            "name": name,
            "rouge_l_greedy": rouge_l(greedy, self.references),
            "rouge_l_sampled": statistics.mean(scores),
            "rouge_l_sampled_std": statistics.stdev(scores) if len(scores) > 1 else None,
            "parameters": model.num_parameters(),
            "tokens_per_second": written / seconds,
        }


def distances(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``(before, after, teacher)``: the metrics of the first and the last evaluation of a run, and the teacher's."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "eval_perplexity" in record]
    teacher = {"perplexity": records[-1]["eval_teacher_perplexity"], "forward_kl": 0.0, "reverse_kl": 0.0}
    return _row(records[0]), _row(records[-1]), {**teacher, "top1_agreement": 1.0}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[f"eval_{name}"] for name in ("perplexity", "forward_kl", "reverse_kl", "top1_agreement")}


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
