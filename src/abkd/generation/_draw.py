"""Tokens drawn by numbers that belong to the prompt, so that the rest of the batch has no say in them."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Warper = Callable[[Any, Any], Any]


class Below:
    """A logits processor: tokens from ``classes`` on (the padding of a head) are never written."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beyond = torch.arange(scores.shape[-1], device=scores.device) >= self.classes
        return scores.masked_fill(beyond, -torch.inf)


class Draw:
    """A logits processor that draws: what it leaves finite is the token of each row.

    Row b takes its k-th token where the cumulative distribution passes the k-th number of ``streams[b]``, so the text
    of a prompt depends on its own numbers and not on what is drawn beside it.
    """

    def __init__(self, streams: Sequence[random.Random], warpers: Sequence[Warper]) -> None:
        self.streams, self.warpers = streams, warpers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        precise = torch.float32 if scores.device.type == "mps" else torch.float64
        mass = scores.softmax(-1, dtype=precise).cumsum(-1)
        numbers = torch.tensor([[stream.random()] for stream in self.streams], dtype=precise, device=scores.device)
        passed = (mass <= numbers * mass[:, -1:]).sum(-1, keepdim=True)
        last = (mass < mass[:, -1:]).sum(-1, keepdim=True)  # a number that is rounded up to 1 stays inside
        return torch.full_like(scores, -torch.inf).scatter_(-1, torch.minimum(passed, last), 0.0)


def streams(prompts: Sequence[Sequence[int]], seed: int) -> list[random.Random]:
    """A stream of numbers for each prompt: a function of the seed, the prompt, and how often it came before.

    So the text of a prompt does not depend on the others, and a prompt that is given twice gets two texts.
    """
    seen: Counter[bytes] = Counter()
    made = []
    for prompt in prompts:
        key = as_bytes(prompt)
        made.append(random.Random(f"{seed}/{seen[key]}/".encode() + key))
        seen[key] += 1
    return made


def as_bytes(prompt: Sequence[int]) -> bytes:
    """Token ids as bytes, the same on every machine."""
    return struct.pack(f"<{len(prompt)}q", *prompt)
