"""Helpers for the tests of teachers: a batch, a run's context, students with adapters, real optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from abkd.data import Batch, Collator, View, prepare_dataset
from abkd.models.language import CausalRows
from abkd.teachers import TeacherContext
from training_parts import llama, rows, tokenizer


def a_batch(count: int = 4) -> Batch:
    return Collator(1)(list(prepare_dataset(rows(count), tokenizer(), max_length=64)))["batch"]


def setting(student: Any, *models: Any) -> TeacherContext:
    return TeacherContext(student=CausalRows(student), models=models)


def logits(reader: Any, view: View) -> Tensor:
    return reader(view).logits(slice(None))


def own_logits(model: Any, view: View) -> Tensor:
    """A model's own output in eval mode, with none of our code in between."""
    with torch.no_grad():
        return model.eval()(**view.inputs).logits.flatten(0, 1)[view.rows]


def with_adapters(model: Any, *, moved: bool = False, **options: Any) -> Any:
    """A student whose adapters are at their initial values, or have been ``moved``."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"], **options}
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(init_lora_weights=not moved, **options))


def steps(student: Any, count: int, optimizer: Any = None) -> Iterator[int]:
    """Takes real optimizer steps; yields the number of each."""
    optimizer = optimizer or torch.optim.AdamW((p for p in student.parameters() if p.requires_grad), lr=1e-2)
    ids = a_batch().student.inputs["input_ids"]
    for step in range(1, count + 1):
        student.train()
        optimizer.zero_grad()
        student(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        yield step


def trained(model: Any) -> dict[str, Tensor]:
    """Copies of the trained parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def tied() -> Any:
    return llama(0, tie_word_embeddings=True)
