"""A run as one value: models, data and objective, from a flat YAML file, command line flags or a dict.

``Recipe`` and its helpers are imported when first used, because they need torch; reading the text of a recipe does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from abkd.recipe._files import read_recipe, shipped
from abkd.recipe._text import parse_flags, read_file, read_mapping

if TYPE_CHECKING:
    from abkd.recipe._changes import check_same_run, written
    from abkd.recipe._checks import names, no_file
    from abkd.recipe._fields import coerce
    from abkd.recipe._recipe import Recipe, dump, load

__all__ = [
    "Recipe",
    "check_same_run",
    "coerce",
    "dump",
    "load",
    "names",
    "no_file",
    "parse_flags",
    "read_file",
    "read_mapping",
    "read_recipe",
    "shipped",
    "written",
]
_LATER = {
    **dict.fromkeys(("Recipe", "dump", "load"), "_recipe"),
    **dict.fromkeys(("check_same_run", "written"), "_changes"),
    **dict.fromkeys(("names", "no_file"), "_checks"),
    "coerce": "_fields",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
