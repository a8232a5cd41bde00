"""Distillation in a custom training loop: the core of `abkd.DistillTrainer`, and nothing else.

    python examples/minimal.py                       # two tiny random models, a few seconds
    python examples/minimal.py STUDENT TEACHER       # two models from the hub or from disk that share a tokenizer

It prints the loss of every step. For heads with a soft-cap or a scale (Gemma, Cohere, Granite), checkpoints, several
processes and everything else, use `abkd.DistillTrainer`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import abkd

DATA = [
    {"prompt": "The capital of France is", "completion": " Paris."},
    {"prompt": "Two and two make", "completion": " four."},
    {"prompt": "The opposite of hot is", "completion": " cold."},
    {"prompt": "Water is made of", "completion": " hydrogen and oxygen."},
    {"prompt": "A week has", "completion": " seven days."},
    {"prompt": "The largest planet of the solar system is", "completion": " Jupiter."},
]
BATCH_SIZE, EPOCHS, LEARNING_RATE = 2, 4, 1e-3
DIVERGENCE = abkd.AlphaBeta(0.2, 0.7)


def load(names: Sequence[str]) -> tuple[Any, Any, Any]:
    """Student, teacher and their common tokenizer."""
    if names:
        student, teacher = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in names)
        return student, teacher, AutoTokenizer.from_pretrained(names[0])
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    return random_model(len(tokenizer), layers=1), random_model(len(tokenizer), layers=2), tokenizer


def byte_tokenizer() -> Any:
    """A tokenizer with one token per byte, and an EOS token."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"]
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def random_model(vocabulary: int, layers: int) -> Any:
    """A small random Llama, with large initial weights so that its predictions are not nearly uniform."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            initializer_range=0.2,
        )
    )


def batches(tokenizer: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``input_ids``, ``attention_mask`` and ``trained`` ``[B, T]``, right-padded; ``trained`` marks the completions."""
    for start in range(0, len(DATA), BATCH_SIZE):
        rows = []
        for row in DATA[start : start + BATCH_SIZE]:
            prompt, completion = (tokenizer(row[part], add_special_tokens=False).input_ids for part in row)
            answer = [*completion, tokenizer.eos_token_id]
            rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
        longest = max(len(ids) for ids, _ in rows)
        missing = [longest - len(ids) for ids, _ in rows]
        yield (
            torch.tensor([ids + [0] * pad for (ids, _), pad in zip(rows, missing, strict=True)]),
            torch.tensor([[1] * (longest - pad) + [0] * pad for pad in missing]),
            torch.tensor([trained + [False] * pad for (_, trained), pad in zip(rows, missing, strict=True)]),
        )


def project(model: Any, ids: Tensor, mask: Tensor, predicts: Tensor) -> abkd.Projected:
    """The hidden states that predict trained tokens ``[N, H]``, and the head: logits are never materialised."""
    hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    head = model.get_output_embeddings()
    return abkd.Projected(hidden[predicts], abkd.Head(head.weight, head.bias))


def train(student: nn.Module, teacher: nn.Module, tokenizer: Any) -> list[float]:
    """The training loop; returns the loss of every step."""
    student.train()
    teacher.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for _ in range(EPOCHS):
        for ids, mask, trained in batches(tokenizer):
            predicts = torch.zeros_like(trained)
            predicts[:, :-1] = trained[:, 1:]  # the token before a trained one predicts it
            with torch.no_grad():
                target = project(teacher, ids, mask, predicts)
            loss = abkd.linear_divergence(project(student, ids, mask, predicts), target, DIVERGENCE).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            print(f"step {len(losses):3d}   loss = {losses[-1]:.4f}")
    return losses


def main() -> None:
    """Distil the models named on the command line, or two tiny random ones."""
    train(*load(sys.argv[1:]))


if __name__ == "__main__":
    main()
