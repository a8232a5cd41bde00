"""Batched generation by sampling, greedy decoding or beam search."""

from __future__ import annotations

from abkd.generation._answers import generate_answers
from abkd.generation._draw import as_bytes
from abkd.generation._sampling import Sampling, settle
from abkd.generation._write import Completion, completions, write_completions

__all__ = [
    "Completion",
    "Sampling",
    "as_bytes",
    "completions",
    "generate_answers",
    "settle",
    "write_completions",
]
