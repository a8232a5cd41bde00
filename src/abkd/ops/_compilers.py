"""Which compiler can fuse the element-wise work here, and ``torch.compile`` for GPUs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from abkd.ops._native import BuildError, find_compiler

logger = logging.getLogger("abkd")

_F = TypeVar("_F")
_warned: set[str] = set()
_compiled_functions: dict[tuple[object, ...], Callable[..., Any] | None] = {}


def compiler_missing(device: torch.device) -> str | None:
    """Why the element-wise work cannot be fused here, or None if it can."""
    if _switched_off():
        return _switched_off()
    if device.type == "cpu" and find_compiler() is None:
        return "no C compiler (cc, gcc or clang) was found"
    return None


def _switched_off() -> str | None:
    return None if os.environ.get("TORCHDYNAMO_DISABLE", "0") in ("", "0") else "TORCHDYNAMO_DISABLE is set"


def warn_unfused(reason: str) -> None:
    """Warn once per process that the eager path is used, and why."""
    if not _warned:
        _warned.add(reason)
        logger.warning("abkd: the loss runs unfused (slower, same numbers): %s", reason)


def native(build: Callable[..., _F], *arguments: object) -> _F | None:
    """A compiled C function, ``build(*arguments)``; None if it cannot be built, which is logged once."""
    try:  # the plan may come from another machine
        if _switched_off():
            raise BuildError(_switched_off())
        return build(*arguments)
    except BuildError as error:
        warn_unfused(str(error))
        return None


def fused_by_torch(key: tuple[object, ...], function: Callable[..., Any], *arguments: object) -> Any:
    """``function(*arguments)`` fused by ``torch.compile``, compiled once per key; None if that fails."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    if key not in _compiled_functions:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own, when it is first loaded
            _compiled_functions[key] = torch.compile(function, dynamic=True)
    compiled = _compiled_functions[key]
    if compiled is None:
        return None
    try:
        return compiled(*arguments)
    except (TorchDynamoException, InductorError) as error:
        _compiled_functions[key] = None
        warn_unfused((str(error).strip() or type(error).__name__).splitlines()[0])
        return None
