"""The command line: ``abkd distill | generate | cache | shrink | show | demo``.

Everything heavy is imported inside the verbs, so that help and refusals come at once.
"""

from __future__ import annotations

from abkd.cli._app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of ``abkd`` and of ``python -m abkd``."""
    app()
