"""A run as one value: models, data and objective, the same as a flat YAML file and as command line flags.

``Recipe`` and what goes with it load when they are first used, because they need torch; the text of a recipe does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abkd.recipe._text import parse_flags

if TYPE_CHECKING:
    from abkd.recipe._recipe import Recipe, dump, load, shipped

__all__ = ["Recipe", "dump", "load", "parse_flags", "shipped"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from abkd.recipe import _recipe

    return getattr(_recipe, name)
