"""Bounds for rounding errors, computed in float64 from the size of the summands of a result.

Two results in float32 are never compared with a fixed bound: the order of summation depends on the processor,
the number of threads and the library, so each is compared with the same sum in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 4.0  # a sum of n parts is off by at most n·ε·Σ|parts|; errors of both signs leave about √n·ε of the largest


def rounding(got: Tensor, exact: Tensor, parts: Tensor | float, dtype: torch.dtype | None = None) -> float:
    """The largest error in units of ``ε·Σ|parts|``.

    Args:
        got: the computed result; its dtype gives ε, or ``dtype`` if the computation used a narrower one.
        exact: the same in float64.
        parts: the sum of the absolute summands of each number; or its maximum, if the largest numbers give the size.
    """
    if not got.numel():
        return 0.0
    unit = torch.finfo(dtype or got.dtype).eps * torch.as_tensor(parts, dtype=torch.float64)
    got, exact = got.detach().double(), exact.detach().double()
    error = torch.where((got == exact) | (got.isnan() & exact.isnan()), 0.0, (got - exact).abs() / unit)
    return error.max().item()


def once_more(dtype: torch.dtype) -> float:
    """The relative error that rounding all numbers of a result to ``dtype`` once more may add.

    Two computations of one result in half precision may differ by this much, depending on the order of summation.
    """
    return torch.finfo(dtype).eps / 2


def assert_rounded(
    got: Tensor, exact: Tensor, parts: Tensor | float, dtype: torch.dtype | None = None, *, name: str = "a number"
) -> None:
    """Assert that ``got`` is ``exact`` up to rounding."""
    off = rounding(got, exact, parts, dtype)
    assert off <= FACTOR, f"{name} is off by {off:.2g} ε·Σ|parts|; rounding may do {FACTOR:g}"
