"""The mixed precision of a run, which transformers 4 keeps in the environment, where it outlives the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "ACCELERATE_MIXED_PRECISION"  # also set by accelerate launch --mixed_precision


def current_precision() -> str:
    """``"no"``, ``"fp16"``, ``"bf16"`` or ``"fp8"``, from the environment."""
    return os.environ.get(_VARIABLE, "no")


@contextmanager
def precision_kept(precision: str | None = None) -> Iterator[None]:
    """Leave the environment unchanged at the end; in between it has this precision, if given."""
    before = os.environ.get(_VARIABLE)
    if precision is not None:
        os.environ[_VARIABLE] = precision
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)
        if before is not None:
            os.environ[_VARIABLE] = before
