"""``abkd cache``: precompute the teacher's predictions for the data of a recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from abkd import terminal
from abkd.cli._console import is_main_process
from abkd.config import DistillConfig
from abkd.errors import ConfigError
from abkd.recipe import Recipe, names
from abkd.run import load_data, with_revision
from abkd.tasks import Given, task_of
from abkd.teachers.caches import Built, CachedTeacher, build_cache, read_manifest


def cache_recipe(recipe: Recipe, console: Console) -> Built:
    """Build the cache named by the recipe's ``teacher``, for the training and held-out rows, and print a summary.

    Raises:
        ConfigError: the recipe's teacher is not a cache.
        AbkdError: see :func:`abkd.teachers.caches.build_cache` and :func:`abkd.run.load_data`.
    """
    config = recipe.distill_config()
    teacher, name = _teacher(recipe, config)
    task = task_of(config.task)
    if not task.cacheable:
        raise ConfigError(
            f"teachers of the task {task.name} cannot be cached: set teacher: Live(), and run abkd distill"
        )
    config.model_init_kwargs = with_revision(config.model_init_kwargs, recipe.model_revision)
    config.teacher_model_init_kwargs = with_revision(config.teacher_model_init_kwargs, recipe.teacher_model_revision)
    train, held_out = load_data(recipe)
    job = task.cache_job(Given(recipe.model_name_or_path, name, train, held_out), config, name)
    start = time.monotonic()
    with _progress(task.unit) as advance:
        built = build_cache(
            teacher,
            temperature=config.kd_temperature,
            share=(config.process_index, config.world_size),
            progress=advance,
            **job._asdict(),
        )
    seconds = time.monotonic() - start
    if config.distributed_state is not None:
        config.distributed_state.wait_for_everyone()  # the counts include the work of every process
    console.print(_summary(teacher, built, seconds, task.unit), markup=False, highlight=False, soft_wrap=True)
    return built


def _teacher(recipe: Recipe, config: DistillConfig) -> tuple[CachedTeacher, str]:
    given = names(recipe.teacher_model_name_or_path)
    if not isinstance(config.teacher, CachedTeacher):
        raise ConfigError(
            f"abkd cache needs a recipe whose teacher is a cache, got {config.teacher!r}; set teacher: "
            "TopKCache(k=64), or HiddenCache()"
        )
    if len(given) != 1:
        raise ConfigError(f"a cache holds one teacher, got {len(given)} in teacher_model_name_or_path; set one name")
    return config.teacher, given[0]


class _Speed(ProgressColumn):
    """Rows per second: trained tokens or images."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self.word}s/s")


@contextmanager
def _progress(word: str) -> Iterator[Callable[[int, int], None]]:
    """Show a transient progress bar on standard error, in the main process."""
    columns = (
        TextColumn("querying the teacher"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
    )
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
    speed = f", {built.made / seconds:,.0f} per second" if built.made else ""
    sequences = "" if word == "image" else f"{there['sequences']:,} sequences, "
    return (
        f"{teacher!r}: {sequences}{there['rows']:,} {word}s, {there['bytes_per_row']} bytes per {word}, in "
        f"{built.folder}\nadded now: {built.made:,} {word}s{speed}"
    )
