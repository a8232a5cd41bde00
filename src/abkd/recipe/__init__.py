"""A run as one value: models, data and objective, the same as a flat YAML file and as command line flags."""

from abkd.recipe._recipe import Recipe, dump, load, shipped
from abkd.recipe._text import parse_flags

__all__ = ["Recipe", "dump", "load", "parse_flags", "shipped"]
