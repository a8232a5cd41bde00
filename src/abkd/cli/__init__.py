"""The command line: ``abkd distill | generate | cache | shrink | show | demo``.

Everything heavy is imported inside the verbs, so that help and refusals come at once.
"""

from __future__ import annotations

import gc

from abkd.cli._app import app

__all__ = ["app", "collect_rarely", "main"]

_OBJECTS = 50_000  # that come before there is a collection; Python's own 700 make torch and transformers load slower


def main() -> None:
    """Entry point of ``abkd`` and of ``python -m abkd``."""
    collect_rarely()
    app()


def collect_rarely() -> None:
    """Fewer collections of garbage: each looks at all that is being imported, an eighth of the time of a start."""
    gc.set_threshold(_OBJECTS)
