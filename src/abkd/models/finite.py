"""Whether the numbers of a tensor are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_finite(value: Any) -> bool:
    """Whether all of a tensor's (or of its local shard's) values are finite, without a copy of it.

    True of what holds no numbers that could be otherwise: integers, nothing, tensors without storage.
    """
    local = value.to_local() if hasattr(value, "to_local") else value
    if not isinstance(local, Tensor) or not local.is_floating_point() or local.numel() == 0 or local.is_meta:
        return True
    local = local.float() if local.element_size() == 1 else local  # norms of 8-bit numbers are not there
    return bool(torch.isfinite(torch.linalg.vector_norm(local.detach(), ord=float("inf"))))
