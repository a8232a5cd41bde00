"""Sampling with random numbers that belong to each prompt, so that it does not depend on the rest of the batch."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Warper = Callable[[Any, Any], Tensor]
"""Scores from token ids and scores. (The parameters of transformers' own have narrower types than Tensor.)"""


class Below:
    """A logits processor: tokens from ``classes`` on (the padding of a head) are never generated."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beyond = torch.arange(scores.shape[-1], device=scores.device) >= self.classes
        return scores.masked_fill(beyond, -torch.inf)


class Draw:
    """A logits processor that samples: it leaves only the sampled token of each row finite.

    The k-th token of row b is where the cumulative distribution passes the k-th number of ``streams[b]`` (inverse
    transform sampling), so a prompt's text depends on its own random numbers and not on the rest of the batch.
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
        last = (mass < mass[:, -1:]).sum(-1, keepdim=True)  # if a number is rounded up to 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, torch.minimum(passed, last), 0.0)


def streams(prompts: Sequence[Sequence[int]], seed: int) -> list[random.Random]:
    """A random stream for each prompt: a function of the seed, the prompt, and how often it occurred before.

    So the text of a prompt does not depend on the others, and a repeated prompt gets different texts.
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
