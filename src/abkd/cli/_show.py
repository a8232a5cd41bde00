"""``abkd show``: print a resolved recipe; the output is itself a recipe when piped into a file."""

from __future__ import annotations

import io

from rich.console import Console
from rich.syntax import Syntax

from abkd.errors import ConfigError
from abkd.recipe import Recipe
from abkd.tasks import task_of


def print_recipe(recipe: Recipe, console: Console) -> None:
    """Print the resolved recipe as YAML, with its objective and the source of its sequences as comments above.

    Nothing is imported for it: components of other packages are printed as they were written.
    """
    text = f"{_header(recipe)}{recipe.to_yaml(resolved=True)}"
    if console.is_terminal:
        console.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def _header(recipe: Recipe) -> str:
    """The objective and the sources, as comments; or the code that is not imported, so that neither is known."""
    if code := {str(each): None for value in recipe.unloaded.values() for each in value.code}:
        return f"# The objective is not shown: it depends on {', '.join(code)}, which abkd show does not import.\n"
    rows = task_of(recipe.settings().task).row_noun
    return f"# {recipe.objective().formula(rows)}\n{_sources(recipe)}"


def _sources(recipe: Recipe) -> str:
    """The tree of sources with their counts and fingerprint, as comments; "" if the source is the dataset alone."""
    from abkd.data import fingerprint as fingerprint_of_rows
    from abkd.data import load_rows
    from abkd.recipe import names, no_file
    from abkd.sources import Dataset, fingerprint, tree

    source = recipe.settings().source
    if source == Dataset():
        return ""
    counts, data = {}, ""
    if recipe.train_file and not any(map(no_file, names(recipe.train_file))):
        rows = load_rows(recipe.train_file)
        counts, data = {"dataset": len(rows), "student": len(rows)}, fingerprint_of_rows(rows)
    drawn = io.StringIO()
    Console(width=200, color_system=None, file=drawn).print(tree(source, counts), markup=False, highlight=False)
    text = f"{drawn.getvalue()}fingerprint {fingerprint(source, data)}"
    return "".join(f"# {line.rstrip()}\n" for line in text.splitlines())


def _check_source(recipe: Recipe) -> None:
    if "source" in recipe.unloaded:
        raise ConfigError(
            f"--sample needs the source, and abkd show does not import {recipe.unloaded['source']}; abkd distill "
            "prints the first row, too"
        )


def print_sample(recipe: Recipe, console: Console) -> None:
    """Print the first training example as the student reads it, as the recipe's task shows it.

    Raises:
        ConfigError: what reads it (a tokenizer) cannot be loaded.
        DataError: the example cannot be used.
    """
    recipe.check_ready(output=False, models=False)  # of the models only a tokenizer is needed
    _check_source(recipe)
    settings = recipe.settings()
    for paragraph in task_of(settings.task).sample(recipe, recipe, settings):
        console.print(paragraph, highlight=False, markup=False)
