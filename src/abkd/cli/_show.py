"""``abkd show``: print a resolved recipe; the output is itself a recipe when piped into a file."""

from __future__ import annotations

import io
from typing import Any

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

    source = _source(recipe)
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


def _source(recipe: Recipe) -> Any:
    if "source" in recipe.unloaded:
        raise ConfigError(
            f"--sample needs the source, and abkd show does not import {recipe.unloaded['source']}; abkd distill "
            "prints the first row, too"
        )
    return recipe.settings().source


def print_sample(recipe: Recipe, console: Console) -> None:
    """Print the first training row as the student reads it, with its trained tokens marked; for images a summary.

    Raises:
        ConfigError: the student's tokenizer cannot be loaded.
        DataError: the row cannot be used.
    """
    from abkd.data import choose_template, describe_sample, load_rows, prepare_dataset
    from abkd.models.loading import load_tokenizer
    from abkd.sources import is_privileged, needs_completions, privileged_context

    recipe.check_ready(output=False, models=False)  # only the student's tokenizer is needed
    if not _is_text(recipe):
        _print_images(recipe, console)
        return
    values, source = recipe.resolved(), _source(recipe)
    rows = load_rows(
        recipe.train_file or recipe.dataset_name or "", config=recipe.dataset_config, split=recipe.dataset_train_split
    )
    tokenizer = load_tokenizer(recipe.model_name_or_path, what="model_name_or_path", revision=recipe.model_revision)
    dataset = prepare_dataset(
        rows[:1],
        tokenizer,
        max_length=values["max_length"],
        apply_chat_template=choose_template(values.get("apply_chat_template"), tokenizer, _teachers(recipe)),
        completions=needs_completions(source),
        context=privileged_context(source),
        privileged=is_privileged(source),
    )
    console.print()
    console.print(describe_sample(dataset[0], tokenizer))


def _teachers(recipe: Recipe) -> dict[str, Any]:
    """Tokenizers of the recipe's teachers, by name."""
    from abkd.models.loading import load_tokenizer
    from abkd.recipe import names

    found, revision = names(recipe.teacher_model_name_or_path), recipe.teacher_model_revision
    return {name: load_tokenizer(name, what="teacher_model_name_or_path", revision=revision) for name in found}


def _is_text(recipe: Recipe) -> bool:
    return "max_length" in task_of(recipe.settings().task).fields


def _print_images(recipe: Recipe, console: Console) -> None:
    from abkd.run import load_data

    for name, images in zip(("trained on", "held out"), load_data(recipe), strict=True):
        if images is None:
            continue
        height, width, _ = images.image(0).shape
        known = images.class_names or ()
        shown = "unlabelled" if images.labels is None else f"class {images.labels[0]}"
        if images.labels is not None and known:
            shown = f"{known[int(images.labels[0])]!r}"
        console.print(
            f"{name}: {len(images)} images{f' of {len(known)} classes' if known else ''}; the first is "
            f"{images.where(0)}, {height} × {width}, {shown}",
            highlight=False,
            markup=False,
        )
