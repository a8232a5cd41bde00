"""``abkd show``: a recipe for the eye, and still a recipe when piped into a file."""

from __future__ import annotations

from rich.console import Console
from rich.syntax import Syntax

from abkd.recipe import Recipe


def print_recipe(recipe: Recipe, console: Console) -> None:
    """The resolved recipe as YAML, its objective as a comment above."""
    text = f"# {recipe.objective().formula()}\n{recipe.to_yaml(resolved=True)}"
    if console.is_terminal:
        console.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def print_sample(recipe: Recipe, console: Console) -> None:
    """The first training row as the student reads it, its trained tokens marked.

    Raises:
        ConfigError: the student's tokenizer is not where the recipe says.
        DataError: the row cannot be used.
    """
    from abkd.data import describe_sample, load_rows, prepare_dataset
    from abkd.models.language import load_tokenizer

    recipe.check_ready(output=False)
    values = recipe.resolved()
    source = recipe.train_file or recipe.dataset_name or ""
    rows = load_rows(source, config=recipe.dataset_config, split=recipe.dataset_train_split)
    tokenizer = load_tokenizer(recipe.model_name_or_path, what="model_name_or_path", revision=recipe.model_revision)
    dataset = prepare_dataset(
        rows[:1], tokenizer, max_length=values["max_length"], apply_chat_template=values["apply_chat_template"]
    )
    console.print()
    console.print(describe_sample(dataset[0], tokenizer))
