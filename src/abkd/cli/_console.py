"""What the command line prints, and the exit code of every ending."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from abkd import terminal
from abkd.errors import AbkdError, ConfigError, StorageError
from abkd.storage import disk_refused

_OUT_OF_MEMORY = (
    "out of memory ({}). Smaller: per_device_train_batch_size (gradient_accumulation_steps makes up for it), "
    "max_length, memory_budget_mb, gradient_checkpointing: true, or a smaller teacher; then begin "
    "again, or go on with --resume"
)


def is_main_process() -> bool:
    """True in the one process that prints (``accelerate launch`` numbers them in ``RANK``)."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def console() -> Console:
    """Standard output; silent in all processes but the first."""
    return Console(quiet=not is_main_process())


class _LogHandler(logging.Handler):
    """A remark is a line, a warning a yellow one."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else ""
        terminal.console().print(
            _printable(record.getMessage()), style=style, markup=False, highlight=False, soft_wrap=True
        )


def _printable(text: str) -> str:
    """Names of files need not be UTF-8: what is not is escaped."""
    return text.encode(errors="backslashreplace").decode()


def configure_logging() -> None:
    """Show our own remarks on standard error (the first process alone); transformers only says what went wrong."""
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logger = logging.getLogger("abkd")
    logger.handlers = [_LogHandler()]
    logger.propagate = False  # or whoever sets up the root logger (absl does) makes us say everything twice
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)


def end_processes() -> None:
    """Part from the other processes of a run, if any: or a thread of gloo's may meet the end of the interpreter.

    Such a thread still wants the interpreter's lock for a moment after the last collective; ending the group in that
    moment waits for the thread while holding the lock, and not ending it aborts the process.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        time.sleep(0.5)
        distributed.destroy_process_group()


@contextmanager
def exit_codes() -> Iterator[None]:
    """Errors that we raise on purpose become one clean paragraph and their exit code; a bug keeps its traceback."""
    try:
        yield
    except AbkdError as error:
        raise _ended(str(error), error.exit_code) from error
    except KeyboardInterrupt as error:
        raise _ended("interrupted", 130) from error
    except Exception as error:
        if disk_refused(error):
            place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
            message = f"no space left on the disk{place}: free some, then continue with --resume"
            raise _ended(message, StorageError.exit_code) from error
        if _out_of_memory(error):
            raise _ended(_OUT_OF_MEMORY.format(str(error).split("\n")[0]), ConfigError.exit_code) from error
        raise


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, typer.Exit) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from abkd.memory import is_out_of_memory

    return is_out_of_memory(error)


def _ended(message: str, exit_code: int) -> typer.Exit:
    # One process per machine speaks: each may see other files, but all of one machine fail for the same reason.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        terminal.console().print(
            _printable(f"abkd: {message}"), style="red", markup=False, highlight=False, soft_wrap=True
        )
    return typer.Exit(exit_code)
