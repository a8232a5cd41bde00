"""The teacher as a writer of text: a server, a model that is there already, or one that is loaded when it is needed."""

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
        name: the name of its model, or the model itself; of a server, what it calls the model ("" if nothing is known).
        url: the server's, where one writes; else ``load`` gives the model, and without it nothing can be written.
        classes: the tokens that may be written; the others are padding of the head.
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
