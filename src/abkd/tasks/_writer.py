"""Generating text with the settings of a run: by the teacher beforehand, and by either model during a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from abkd.generation import Completion, Sampling, write_completions
from abkd.settings import Settings
from abkd.sources import Server, TeacherWriter, write_with
from abkd.tasks.base import OpenTask
from abkd.teachers import identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def teacher_writer(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str | nn.Module | None,
    revision: str | None,
    url: str | None,
    load: Callable[[], nn.Module] | None = None,
    classes: int | None = None,
    batch_size: int = 8,
) -> TeacherWriter:
    """The teacher of a run as a writer.

    Args:
        name: the name of its model, or the model itself; for a server, the model's name there ("" if unknown).
        url: of the server, if one generates the text; else ``load`` returns the model, and without either nothing can
            be generated.
        classes: number of tokens that may be generated; the others are padding of the head.
    """
    write = None
    if url:
        write = Server(url, name if isinstance(name, str) else "", tokenizer)
    elif load is not None:
        write = write_with(load, tokenizer, batch_size=batch_size, classes=classes)
    return TeacherWriter(
        identity=identity(name or url or "", revision, tokenizer),
        tokenizer=tokenizer,
        max_length=settings.max_length,
        max_completion_length=settings.max_completion_length,
        write=write,
        generation_kwargs=settings.generation_kwargs,
        server=bool(url),
    )


def write_completions_for(
    task: OpenTask,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    synced: bool = False,
) -> list[Completion]:
    """Completions by a model with the settings of an open task, within max_length including the prompt.

    ``synced``: as in :func:`abkd.generation.write_completions`, which generates them.
    """
    args, models = task.args, task.models
    return write_completions(
        model,
        models.tokenizer,
        prompts,
        sampling,
        max_new_tokens=[min(args.max_completion_length, args.max_length - len(prompt)) for prompt in prompts],
        classes=models.classes,
        seed=seed,
        batch_size=args.per_device_eval_batch_size,
        generation_kwargs=args.generation_kwargs,
        synced=synced,
    )
