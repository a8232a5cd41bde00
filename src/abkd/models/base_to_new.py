"""Base-to-new metrics: accuracy on the classes seen in training (base) and on unseen ones (new).

The classes are split into two halves, base and new. An image counts towards the half of its own class, and is
classified among the classes of that half only (the protocol of CoOp, arXiv 2109.01134, and CoCoOp, arXiv 2203.05557).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from abkd.errors import ConfigError


def columns(logits: Tensor, targets: Tensor, base: tuple[int, ...]) -> dict[str, Tensor]:
    """Each row's terms of the sums that :func:`metrics` takes.

    Args:
        logits: ``[N, C]`` over base and new classes.
        targets: ``[N]``, the class of each row.
        base: the base classes; all others are new.

    Returns:
        ``base_rows``, ``base_right``, ``new_rows``, ``new_right``: float32 ``[N]`` of 0 and 1.

    Raises:
        ConfigError: ``base`` names a class that does not exist, no class, or all of them.
    """
    is_base = _halves(base, logits.shape[-1]).to(logits.device)
    of_base = is_base[targets]
    other_half = is_base[None, :] != of_base[:, None]
    right = logits.masked_fill(other_half, -torch.inf).argmax(-1) == targets
    marks = {
        "base_rows": of_base,
        "base_right": of_base & right,
        "new_rows": ~of_base,
        "new_right": ~of_base & right,
    }
    return {name: mark.to(torch.float32) for name, mark in marks.items()}


def metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """``base_accuracy``, ``new_accuracy`` and their ``harmonic_mean``, from 0 to 1, from the sums over all rows.

    If a half has no images, its accuracy and the mean are left out. The mean of 0 and anything is 0. (The mean over
    several data sets is the mean of their harmonic means.)
    """
    found = {
        f"{half}_accuracy": totals[f"{half}_right"] / totals[f"{half}_rows"]
        for half in ("base", "new")
        if totals[f"{half}_rows"] > 0
    }
    if len(found) == 2:
        base, new = found.values()
        found["harmonic_mean"] = 2.0 * base * new / (base + new) if base + new > 0 else 0.0
    return found


def _halves(base: tuple[int, ...], classes: int) -> Tensor:
    """``[C]``: True for a base class."""
    strange = sorted(each for each in set(base) if not 0 <= each < classes)
    if strange or not 0 < len(set(base)) < classes:
        found = f"{strange}, not among" if strange else f"{len(set(base))} of"
        raise ConfigError(
            f"base classes must be some of the model's classes, but not all, got {found} its {classes} "
            f"(0 to {classes - 1}); abkd.data.images.base_and_new gives the usual halves"
        )
    is_base = torch.zeros(classes, dtype=torch.bool)
    is_base[list(base)] = True
    return is_base
