"""Console output, logging and exit codes of the command line."""

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
    "out of memory ({}). Reduce per_device_train_batch_size (and raise gradient_accumulation_steps), max_length or "
    "memory_budget_mb, set gradient_checkpointing: true, or use a smaller teacher; then start again, or continue with "
    "--resume"
)


def is_main_process() -> bool:
    """True in the process that prints, the one with ``RANK`` 0 (set by ``accelerate launch``)."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def console() -> Console:
    """Standard output; silent in all processes but the main one."""
    return Console(quiet=not is_main_process())


class _LogHandler(logging.Handler):
    """Prints each log record as one line, warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else ""
        terminal.console().print(
            _printable(record.getMessage()), style=style, markup=False, highlight=False, soft_wrap=True
        )


def _printable(text: str) -> str:
    """Escape what cannot be encoded: file names need not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def configure_logging() -> None:
    """Log abkd's messages to standard error (main process only), and only errors of transformers."""
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    log_messages()


def log_messages() -> None:
    """Log abkd's messages to standard error (main process only); this imports nothing."""
    logger = logging.getLogger("abkd")
    logger.handlers = [_LogHandler()]
    logger.propagate = False  # a library that configures the root logger (absl does) would print every line twice
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)


def end_processes() -> None:
    """Destroy the process group of a distributed run, so that no gloo thread outlives the interpreter.

    Such a thread still needs the GIL for a moment after the last collective. Destroying the group within that moment
    deadlocks, because it waits for the thread while holding the GIL; not destroying it aborts the process.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        time.sleep(0.5)
        distributed.destroy_process_group()


@contextmanager
def exit_codes() -> Iterator[None]:
    """Print abkd's own errors as one paragraph and exit with their code; any other exception keeps its traceback."""
    try:
        yield
    except AbkdError as error:
        raise _ended(str(error), error.exit_code) from error
    except KeyboardInterrupt as error:
        raise _ended("interrupted", 130) from error
    except Exception as error:
        if disk_refused(error):
            place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
            message = f"no space left on the disk{place}: free some disk space, then continue with --resume"
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
    # One process per machine prints: machines may see different files, but within one the reason is the same.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        terminal.console().print(
            _printable(f"abkd: {message}"), style="red", markup=False, highlight=False, soft_wrap=True
        )
    return typer.Exit(exit_code)
