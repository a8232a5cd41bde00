"""The command line: ``abkd distill | generate | cache | shrink | show | demo``.

Heavy modules are imported inside the commands, so that help and errors in the input appear at once.
"""

from __future__ import annotations

import gc

from abkd.cli._app import app

__all__ = ["app", "collect_rarely", "main"]

_OBJECTS = 50_000  # allocations before a garbage collection; Python's default of 700 slows down importing torch


def main() -> None:
    """Entry point of ``abkd`` and of ``python -m abkd``."""
    collect_rarely()
    app()


def collect_rarely() -> None:
    """Collect garbage less often: scanning everything that is imported takes an eighth of the startup time."""
    gc.set_threshold(_OBJECTS)
