"""``abkd generate``: the teacher's completions of the training prompts of a recipe."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from abkd.cli._console import is_main_process
from abkd.data import TokenizedDataset, check_same_tokenizer
from abkd.data.vocabulary import vocabulary_size
from abkd.errors import ConfigError
from abkd.models.loading import load_causal_lm, load_tokenizer, placed, teacher_options
from abkd.recipe import Recipe, names
from abkd.run import load_data
from abkd.schedules import Schedule
from abkd.settings import Settings
from abkd.sources import (
    Privileged,
    Source,
    Store,
    TeacherSamples,
    TeacherWriter,
    ensure_teacher_text,
    privileged_context,
    stage_sources,
    uses,
    writing_bar,
)
from abkd.tasks import prepare_text, teacher_writer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_text(recipe: Recipe, output_file: str | None) -> None:
    """Generate the missing completions into ``output_file`` or the cache of ``abkd distill``, and print a summary.

    Several processes (``RANK`` and ``WORLD_SIZE``, as torchrun sets them) share the prompts and need no connection.

    Raises:
        ConfigError: the recipe does not name exactly one teacher.
        AbkdError: see :func:`abkd.sources.ensure_teacher_text` and :func:`abkd.run.load_data`.
    """
    settings = _settings(recipe, output_file)
    tokenizer = load_tokenizer(recipe.model_name_or_path, what="model_name_or_path", revision=recipe.model_revision)
    author = _writer(recipe, settings, tokenizer)
    dataset = _prompts(recipe, settings, tokenizer)
    process, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    start = time.monotonic()
    tokens = 0
    with writing_bar() as show:

        def progress(done: int, total: int, written: int) -> None:
            nonlocal tokens
            tokens = written
            show(done, total, written)

        text = ensure_teacher_text(
            settings.source,
            dataset,
            author,
            process=process,
            processes=processes,
            wait=False,
            progress=progress,
        )
    (store,) = text.stores.values()
    _sum_up(store, tokens, time.monotonic() - start, complete=text.complete)


def _settings(recipe: Recipe, output_file: str | None) -> Settings:
    """The recipe's settings with the teacher as source; ``DistillConfig`` would set up a process group."""
    settings = recipe.settings()
    settings.lm_coef, settings.packing = 0.0, False  # neither changes a prompt
    settings.source = _source(settings.source, output_file)
    return settings


def _source(source: Source | Schedule, output_file: str | None) -> Source:
    """The first ``TeacherSamples`` of the recipe, or the default one if there is none."""
    found = [use for stage in stage_sources(source) for use in uses(stage)]
    first, privileged = found[0] if found else (TeacherSamples(), False)
    chosen = first if output_file is None else dataclasses.replace(first, file=output_file)
    return Privileged(chosen, privileged_context(source)) if privileged else chosen


def _writer(recipe: Recipe, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> TeacherWriter:
    """The recipe's teacher as a writer: its server if one is set, else its model, loaded when needed.

    Raises:
        ConfigError: the recipe names no teacher, or several.
    """
    url, given = settings.teacher_model_server_url, names(recipe.teacher_model_name_or_path)
    if len(given) > 1 or not (given or url):
        raise ConfigError(
            f"abkd generate needs one teacher, got {len(given) or 'none'}; set teacher_model_name_or_path to one name"
        )
    name, device = given[0] if given else "", _device(recipe)
    options = teacher_options(settings.teacher_model_init_kwargs, device, recipe.teacher_model_revision)
    revision = options.get("revision")
    if not url:
        check_same_tokenizer(tokenizer, load_tokenizer(name, what="teacher_model_name_or_path", revision=revision))
    return teacher_writer(
        settings,
        tokenizer,
        name=name,
        revision=revision,
        url=url,
        load=_loading(name, options, device),
        classes=vocabulary_size(tokenizer),
        batch_size=recipe.config.get("per_device_eval_batch_size", 8),
    )


def _device(recipe: Recipe) -> torch.device:
    found = None if recipe.config.get("use_cpu") else torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))


def _loading(name: str, options: dict[str, Any], device: torch.device) -> Callable[[], PreTrainedModel]:
    def load() -> PreTrainedModel:
        return placed(load_causal_lm(name, what="teacher_model_name_or_path", **options), device)

    return load


def _prompts(recipe: Recipe, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> TokenizedDataset:
    """The rows that a run of this recipe would train on."""
    if recipe.streaming:
        raise ConfigError("abkd generate needs all prompts, and streamed rows have no known end; set streaming: false")
    train, _ = load_data(recipe)
    dataset = prepare_text(train, tokenizer, settings, "train", teachers=_teachers(recipe, settings))
    assert isinstance(dataset, TokenizedDataset)
    return dataset


def _teachers(recipe: Recipe, settings: Settings) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers that a run of this recipe loads in addition to the student's."""
    if settings.teacher_model_server_url and not recipe.objective().ever_needs_teacher():
        return {}
    options, found = settings.teacher_model_init_kwargs or {}, names(recipe.teacher_model_name_or_path)
    revision = recipe.teacher_model_revision or options.get("revision")
    return {name: load_tokenizer(name, what="teacher_model_name_or_path", revision=revision) for name in found}


def _sum_up(store: Store, tokens: int, seconds: float, *, complete: bool) -> None:
    console = Console(quiet=not (complete or is_main_process()))
    if not complete:
        console.print(
            f"This process is done; the last one to finish writes {store.path}.", soft_wrap=True, markup=False
        )
        return
    counts = store.counts()
    speed = f", {tokens / seconds:,.0f} tokens/s" if tokens else ""
    table = Table.grid(padding=(0, 2))
    table.add_row("prompts", f"{counts['prompts']:,}")
    table.add_row("tokens", f"{counts['tokens']:,} ({tokens:,} generated now by this process{speed})")
    table.add_row("clipped", f"{counts['clipped']:,} completions cut off at max_completion_length")
    table.add_row("blank", f"{counts['blank']:,} empty completions, which are not in the file")
    console.print(f"The teacher's text is in {store.path}", soft_wrap=True, markup=False, highlight=False)
    console.print(table)
