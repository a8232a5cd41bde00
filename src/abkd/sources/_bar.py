"""The progress bar of the teacher's text generation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from abkd import terminal
from abkd.sources._teacher_text import Progress


@contextmanager
def writing_bar() -> Iterator[Progress]:
    """A progress bar on standard error, in the first process only, removed at the end: prompts and tokens/s.

    All processes have the same number of prompts, so the first one's progress represents all.
    """
    from rich import progress

    console = terminal.console()
    line = progress.Progress(
        progress.TextColumn("generating teacher text"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=os.environ.get("RANK", "0") != "0",
    )
    with line, terminal.taken(console):
        task = line.add_task("", total=None, visible=False, speed=0.0)

        def advance(done: int, total: int, tokens: int) -> None:
            seconds = line.tasks[0].elapsed or 0.0
            line.update(task, completed=done, total=total, visible=True, speed=tokens / seconds if seconds else 0.0)

        yield advance
