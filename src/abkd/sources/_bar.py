"""The line that shows how far the teacher has come with its text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from abkd import terminal
from abkd.sources._teacher_text import Progress


@contextmanager
def writing_bar() -> Iterator[Progress]:
    """A line on standard error, in the first process, that is gone when all is written: prompts and tokens/s.

    Each process has as many prompts as the others, so the first one's are a measure of all.
    """
    from rich import progress

    console = terminal.console()
    line = progress.Progress(
        progress.TextColumn("the teacher writes"),
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
