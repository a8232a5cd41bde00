"""Generating text with the teacher: through a server, or with a model that is loaded when needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from abkd.settings import Settings
from abkd.sources import Server, TeacherWriter, write_with
from abkd.teachers import identity


def teacher_writer(
    settings: Settings,
    tokenizer: Any,
    *,
    name: Any,
    revision: str | None,
    url: str | None,
    load: Callable[[], Any] | None = None,
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
    write: Any = None
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
