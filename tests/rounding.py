"""How far a result may be off by rounding alone: judged in float64, by the size of what was added up to get it.

Two results in float32 are never compared with a fixed bound: which parts a sum adds up first depends on the processor,
the number of threads and the library, so each is judged by itself against the same sum in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 4.0  # a sum of n parts is off by at most n·ε·Σ|parts|; errors of both signs leave about √n·ε of the largest


def rounding(got: Tensor, exact: Tensor, parts: Tensor | float, dtype: torch.dtype | None = None) -> float:
    """The largest error in units of ``ε·Σ|parts|``.

    Args:
        got: what was computed; its dtype, or ``dtype`` where the way there was in a narrower one, tells ε.
        exact: the same in float64.
        parts: the sum of the absolute parts of each number; its maximum, where the largest numbers tell the size.
    """
    if not got.numel():
        return 0.0
    unit = torch.finfo(dtype or got.dtype).eps * torch.as_tensor(parts, dtype=torch.float64)
    got, exact = got.detach().double(), exact.detach().double()
    error = torch.where((got == exact) | (got.isnan() & exact.isnan()), 0.0, (got - exact).abs() / unit)
    return error.max().item()


def once_more(dtype: torch.dtype) -> float:
    """What rounding all numbers of a result to ``dtype`` once more may add to its relative error.

    Two ways to one result in half precision differ by that much through luck: in which order each has added up.
    """
    return torch.finfo(dtype).eps / 2


def assert_rounded(
    got: Tensor, exact: Tensor, parts: Tensor | float, dtype: torch.dtype | None = None, *, name: str = "a number"
) -> None:
    """``got`` is ``exact`` but for rounding."""
    off = rounding(got, exact, parts, dtype)
    assert off <= FACTOR, f"{name} is off by {off:.2g} ε·Σ|parts|; rounding may do {FACTOR:g}"
