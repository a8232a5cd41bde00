"""The cache directory, for files that can be built or downloaded again, and sizes as text."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """The argument, ``$ABKD_CACHE``, ``$XDG_CACHE_HOME/abkd``, else ``~/.cache/abkd``."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if os.environ.get("ABKD_CACHE"):
        return Path(os.environ["ABKD_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "abkd"


def readable(size: float) -> str:
    """A number of bytes as human-readable text."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
