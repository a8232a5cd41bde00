"""Whether bfloat16 is faster than float32 on this machine."""

from __future__ import annotations

import time
from functools import cache

import torch

_ROWS, _WIDTH, _CLASSES = 128, 512, 2048
_ROUNDS = 3


@cache
def bf16_slowdown() -> float:
    """The time of a matrix product in bfloat16 relative to float32 on this processor, measured once.

    Processors with AMX or AVX512-BF16 are below 1. Others convert every number, or multiply one by one, and are at 1.5
    to 6: there bf16 saves memory but costs time.
    """
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] / seconds[torch.float32]


def bf16_pays() -> bool:
    """Whether bfloat16 is the faster dtype: on every GPU that supports it, and on CPUs with instructions for it."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else bf16_slowdown() < 1


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds of the fastest of a few products, after one warm-up."""
    hidden, head = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_CLASSES, _WIDTH, dtype=dtype)
    seconds = []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        torch.matmul(hidden, head.T)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
