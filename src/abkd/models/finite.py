"""Check that a tensor's values are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_finite(value: Any) -> bool:
    """Whether all values of a tensor (or of its local shard) are finite, without copying it.

    True for anything that cannot hold NaN or infinity: integers, empty tensors, tensors on the meta device.
    """
    local = value.to_local() if hasattr(value, "to_local") else value
    if not isinstance(local, Tensor) or not local.is_floating_point() or local.numel() == 0 or local.is_meta:
        return True
    local = local.float() if local.element_size() == 1 else local  # torch has no norm for 8-bit floats
    return bool(torch.isfinite(torch.linalg.vector_norm(local.detach(), ord=float("inf"))))
