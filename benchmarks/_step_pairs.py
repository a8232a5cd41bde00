"""The pairs of models whose training step is measured, and the rows they are trained on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from abkd.data import Example, prepare_dataset
from abkd.demo.teacher import demo_teacher_path
from abkd.demo.text import build_rows
from abkd.models.loading import load_causal_lm, load_tokenizer
from abkd.models.shrink import decoder_layers, shrink

QWEN_CLASSES = 151_936


@dataclass
class Pair:
    """Two models over one vocabulary, and rows in the order in which every contestant trains on them.

    A model that a contestant does not need is None, so that its weights are not in the measured memory.
    """

    student: Any
    teacher: Any
    tokenizer: Any
    examples: Sequence[Example]
    batch_size: int
    max_length: int
    state_per_weight: ClassVar[int] = 3  # the gradient, and two moments of AdamW

    def batches(self, steps: int) -> list[list[Example]]:
        """The rows of each of the first ``steps`` steps."""
        starts = range(0, steps * self.batch_size, self.batch_size)
        return [list(self.examples[start : start + self.batch_size]) for start in starts]

    def counts(self, steps: int) -> list[dict[str, int]]:
        """The tokens of each step: all, those trained on, and all with padding."""
        return [_counts(batch) for batch in self.batches(steps)]


def _counts(batch: Sequence[Example]) -> dict[str, int]:
    lengths = [len(row["input_ids"]) for row in batch]
    trained = sum(sum(row["trained"]) for row in batch)
    return {"all": sum(lengths), "trained": trained, "padded": max(lengths) * len(lengths)}


def make_pair(name: str, steps: int, *, student: bool = True, teacher: bool = True) -> Pair:
    """The pair ``name`` of :data:`PAIRS` with rows for ``steps`` steps, without the models that are not needed."""
    pair = PAIRS[name](steps)
    if not student:
        pair.student = None
    if not teacher:
        pair.teacher = None
    return pair


def _demo(steps: int) -> Pair:
    """SmolLM2-135M-Instruct and every second of its 30 layers, on the demo's text."""
    teacher = load_causal_lm(demo_teacher_path(), what="the demo's teacher", dtype=torch.float32)
    layers = len(decoder_layers(teacher)[1])
    student, _ = shrink(teacher, layers // 2, [float(i % 2 == 0) for i in range(layers)])
    tokenizer, examples = _demo_text(8 * steps)
    return Pair(student, teacher, tokenizer, examples, batch_size=8, max_length=256)


def _qwen(steps: int) -> Pair:
    """Random weights with Qwen's vocabulary and few layers; random tokens with the demo's lengths."""
    student = _random_qwen(QWEN_CLASSES, width=512, layers=4, seed=0)
    teacher = _random_qwen(QWEN_CLASSES, width=1024, layers=6, seed=1)
    tokenizer, examples = _demo_text(4 * steps)
    return Pair(student, teacher, tokenizer, _other_tokens(examples, QWEN_CLASSES), batch_size=4, max_length=256)


def _tiny(steps: int) -> Pair:
    """A tiny pair for the smoke test: seconds instead of minutes."""
    chance = random.Random(0)
    shapes = [(chance.randint(4, 10), chance.randint(2, 12)) for _ in range(2 * steps)]
    examples = [Example(input_ids=[0] * (p + c), trained=[False] * p + [True] * c) for p, c in shapes]
    student = _random_qwen(96, width=32, layers=1, seed=0)
    teacher = _random_qwen(96, width=64, layers=2, seed=1)
    return Pair(student, teacher, _word_tokenizer(96), _other_tokens(examples, 96), batch_size=2, max_length=32)


PAIRS: dict[str, Callable[[int], Pair]] = {"demo": _demo, "qwen": _qwen, "tiny": _tiny}


def demo_rows(count: int) -> list[dict[str, Any]]:
    """The first rows of the demo's text, in the demo's own order."""
    rows, _ = build_rows()
    random.Random(0).shuffle(rows)
    return rows[:count]


def _demo_text(count: int) -> tuple[Any, list[Example]]:
    """The demo's tokenizer and its first ``count`` rows."""
    tokenizer = load_tokenizer(demo_teacher_path(), what="the demo's teacher")
    return tokenizer, list(prepare_dataset(demo_rows(count), tokenizer, max_length=256))


def _other_tokens(examples: Sequence[Example], classes: int) -> list[Example]:
    """The same lengths and masks with random tokens; the first few ids are reserved for special tokens."""
    chance = random.Random(0)
    return [
        Example(input_ids=[chance.randrange(4, classes) for _ in row["input_ids"]], trained=row["trained"])
        for row in examples
    ]


def _random_qwen(classes: int, *, width: int, layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=classes,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def _word_tokenizer(classes: int) -> PreTrainedTokenizerFast:
    """A tokenizer with ``classes`` words, for code that requires one although the rows are already tokens.

    It cannot encode text, so it makes no difference which tokenizer class loads the saved files.
    """
    from tokenizers import Tokenizer, models

    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, classes))]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
