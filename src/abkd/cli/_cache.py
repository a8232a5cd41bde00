"""``abkd cache``: what the teacher says about the data of a recipe, worked out once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from abkd import terminal
from abkd.cli._console import is_main_process
from abkd.cli._generate import teacher_writer
from abkd.config import DistillConfig
from abkd.data import Example, TokenizedDataset, check_same_tokenizer
from abkd.data.vocabulary import vocabulary_size
from abkd.errors import ConfigError
from abkd.models.language import CausalRows
from abkd.models.loading import load_causal_lm, load_tokenizer, placed, teacher_options
from abkd.models.rows import ModelRows
from abkd.recipe import Recipe, names
from abkd.run import load_data
from abkd.setting_rules import IMAGES, TEXT
from abkd.sources import ensure_teacher_text, known_sequences, needs_teacher_text
from abkd.teachers import identity
from abkd.teachers.caches import Built, CachedTeacher, build_cache, image_identity, read_manifest
from abkd.trainer._text_data import prepare_data

if TYPE_CHECKING:
    from abkd.models.vision import Classifier

_WORDS = {TEXT: "token", IMAGES: "image"}
"""The tasks whose teachers are cached, and what a row is."""


def cache_recipe(recipe: Recipe, console: Console) -> Built:
    """Build the cache that the recipe's ``teacher`` names, for its training and its held-out rows, and say how it is.

    Raises:
        ConfigError: the recipe's teacher is no cache.
        AbkdError: as :func:`abkd.teachers.caches._build.build_cache`, and as the data.
    """
    config = recipe.distill_config()
    teacher, name = _teacher(recipe, config)
    if config.task not in _WORDS:
        raise ConfigError(f"no teacher of the task {config.task} is cached: set teacher: Live(), and run abkd distill")
    read = _images if config.task == IMAGES else _text
    of_recipe = read(recipe, config, name)
    start = time.monotonic()
    with _progress(_WORDS[config.task]) as advance:
        built = build_cache(
            teacher,
            temperature=config.kd_temperature,
            share=(config.process_index, config.world_size),
            progress=advance,
            **of_recipe,
        )
    seconds = time.monotonic() - start
    if config.distributed_state is not None:
        config.distributed_state.wait_for_everyone()  # the last to go counts what all have made
    console.print(_summary(teacher, built, seconds, _WORDS[config.task]), markup=False, highlight=False, soft_wrap=True)
    return built


def _text(recipe: Recipe, config: DistillConfig, name: str) -> dict[str, Any]:
    """What of the cache follows from the recipe: the sequences to read, and who reads them."""
    options = teacher_options(config.teacher_model_init_kwargs, config.device, recipe.teacher_model_revision)
    revision = options.get("revision")
    tokenizer = load_tokenizer(recipe.model_name_or_path, what="model_name_or_path", revision=recipe.model_revision)
    theirs = load_tokenizer(name, what="teacher_model_name_or_path", revision=revision)
    check_same_tokenizer(tokenizer, theirs)
    datasets = _datasets(recipe, config, tokenizer, {name: theirs})
    return {
        "examples": _sequences(recipe, config, tokenizer, datasets),
        "load": lambda: _load(name, options, config),
        "identity": identity(name, revision, tokenizer),
        "tokens": vocabulary_size(tokenizer),
        "about": {"max_length": config.max_length, "data": {each.name: each.fingerprint for each in datasets}},
        "batch_size": config.per_device_eval_batch_size,
    }


def _images(recipe: Recipe, config: DistillConfig, name: str) -> dict[str, Any]:
    """The same of images: those of all epochs as training will ask for them, and those held out."""
    from abkd.teachers.caches import EpochImages
    from abkd.trainer._image_caches import told_apart_by, training_passes
    from abkd.trainer._images import prepare_data as prepare_images

    options: dict[str, Any] = dict(config.teacher_model_init_kwargs or {})
    if recipe.teacher_model_revision:
        options["revision"] = recipe.teacher_model_revision
    images, held_out = load_data(recipe)
    train = training_passes(prepare_images(images, config.image_size, config, "train"), config)
    passes = [train]
    if held_out is not None:
        other = prepare_images(held_out, config.image_size, config, "eval")
        passes.append(EpochImages(other, batch_size=config.per_device_eval_batch_size))
    teacher = told_apart_by(name, options, config.allow_code or (), images)
    return {
        "examples": passes,
        "load": lambda: _load_classifier(teacher, options, config, images),
        "identity": image_identity(teacher, options),
        "about": {"data": {each.dataset.name: each.dataset.fingerprint for each in passes}, "epochs": train.epochs},
        "workers": config.dataloader_num_workers,
    }


def _teacher(recipe: Recipe, config: DistillConfig) -> tuple[CachedTeacher, str]:
    given = names(recipe.teacher_model_name_or_path)
    if not isinstance(config.teacher, CachedTeacher):
        raise ConfigError(
            f"abkd cache builds the cache that the recipe reads, but its teacher is {config.teacher!r}: set teacher: "
            "TopKCache(k=64), or HiddenCache()"
        )
    if len(given) != 1:
        raise ConfigError(f"a cache is of one teacher, but teacher_model_name_or_path names {len(given)}")
    return config.teacher, given[0]


def _datasets(
    recipe: Recipe, config: DistillConfig, tokenizer: Any, teachers: dict[str, Any]
) -> list[TokenizedDataset]:
    """What a run of this recipe would read, tokenised as it would."""
    config.lm_coef, config.packing = 0.0, False  # neither changes what the teacher reads
    train, held_out = load_data(recipe)
    both = (("train", train), ("eval", held_out))
    prepared = [prepare_data(rows, tokenizer, config, what, teachers=teachers) for what, rows in both]
    return [dataset for dataset in prepared if isinstance(dataset, TokenizedDataset)]


def _sequences(
    recipe: Recipe, config: DistillConfig, tokenizer: Any, datasets: list[TokenizedDataset]
) -> Iterator[Example]:
    """What a run reads: of the training rows what its source makes of them, and the held-out rows themselves."""
    source = config.source
    text = None
    if needs_teacher_text(source):
        author = dataclasses.replace(
            teacher_writer(recipe, config, tokenizer), write=None
        )  # that is abkd generate's work
        text = ensure_teacher_text(source, datasets[0], author)
    yield from known_sequences(source, datasets[0], text)
    for held_out in datasets[1:]:
        yield from held_out


def _load(name: str, options: dict[str, Any], config: DistillConfig) -> CausalRows:
    model = placed(load_causal_lm(name, what="teacher_model_name_or_path", **options), config.device)
    return CausalRows(model.eval().requires_grad_(False))


def _load_classifier(given: str | Classifier, options: dict[str, Any], config: DistillConfig, data: Any) -> ModelRows:
    from abkd.models.vision import ImageRows, check_classes
    from abkd.trainer._image_caches import load_teacher

    allowed: Any = config.allow_code or ()
    teacher = load_teacher(given, options, allowed, data) if isinstance(given, str) else given
    check_classes(teacher, teacher, data.class_names)
    placed(teacher.model, config.device).eval().requires_grad_(False)
    return ImageRows(teacher)


class _Speed(ProgressColumn):
    """Rows in a second: one for each token that is trained, or each image."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self.word}s/s")


@contextmanager
def _progress(word: str) -> Iterator[Callable[[int, int], None]]:
    """A line on standard error, in the first process, that is gone when all is done."""
    columns = (TextColumn("asking the teacher"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"))
    console = terminal.console()
    line = Progress(
        *columns,
        _Speed(word),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not is_main_process(),
    )
    with line, terminal.taken(console):
        task = line.add_task("", total=None, visible=False)

        def advance(done: int, total: int) -> None:
            line.update(task, completed=done, total=total, visible=True)

        yield advance


def _summary(teacher: CachedTeacher, built: Built, seconds: float, word: str) -> str:
    there = read_manifest(built.folder) or {}
    speed = f", {built.made / seconds:,.0f} a second" if built.made else ""
    sequences = "" if word == "image" else f"{there['sequences']:,} sequences, "
    return (
        f"{teacher!r}: {sequences}{there['rows']:,} {word}s, {there['bytes_per_row']} bytes per {word}, in "
        f"{built.folder}\nmade now: {built.made:,} {word}s{speed}"
    )
