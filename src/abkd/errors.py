"""The exceptions of abkd, and their exit codes on the command line.

Every message says what was expected, what was given, and how to fix it.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


class AbkdError(Exception):
    """Base of all errors that abkd raises on purpose.

    ``exit_code`` is returned by the command line: 2 invalid input, 3 a non-finite number, 4 a failed write to disk,
    5 no usable answer from a server, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message, with bytes of paths that are not valid UTF-8 escaped, so that it can be printed and written."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "None",
}
"""How messages name each type of value."""


def shown(value: object) -> str:
    """The ``repr`` of a value for a message, shortened."""
    return _SHORT.repr(value)


class ConfigError(AbkdError, ValueError):
    """An invalid value in a recipe, a flag or a constructor argument."""


class DataError(AbkdError, ValueError):
    """A data file or row that cannot be used; the message names the file and the row."""


class VocabularyError(AbkdError, ValueError):
    """Two models whose classes or tokenizers do not match."""


class OutputDirError(AbkdError, FileExistsError):
    """The output directory is in use, or is not what a resume needs."""


class NonFiniteError(AbkdError, ArithmeticError):
    """A loss, gradient or teacher output is NaN or infinite; nothing computed from it was saved."""

    exit_code = 3


class StorageError(AbkdError, OSError):
    """A checkpoint could not be written; the previous one is intact."""

    exit_code = 4


class ServerError(AbkdError, ConnectionError):
    """A server that generates the teacher's text gave no usable answer; earlier answers are kept."""

    exit_code = 5


class Interrupted(AbkdError):
    """The run was interrupted; its state is saved and ``--resume`` continues from there."""

    exit_code = 130
