"""What can go wrong, and the exit code the command line gives for it.

Every message says what was expected, what was got, and the way out.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


class AbkdError(Exception):
    """Base of all errors that abkd raises on purpose.

    ``exit_code`` is what the command line returns: 2 bad input, 3 a number stopped being finite,
    4 the disk refused, 5 a server did not answer, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """

    exit_code = 2

    def __str__(self) -> str:
        """The sentence; what of a path in it is no text is escaped, so that it can be printed and written."""
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
    """A value in a message, of whatever size it is: its ``repr``, shortened."""
    return _SHORT.repr(value)


class ConfigError(AbkdError, ValueError):
    """A recipe, flag or constructor argument that cannot be meant."""


class DataError(AbkdError, ValueError):
    """A data file or row that cannot be used; names the file and the row."""


class VocabularyError(AbkdError, ValueError):
    """Two models whose classes (or whose tokenizers) do not fit each other."""


class OutputDirError(AbkdError, FileExistsError):
    """The output directory is in use, or is not what a resume needs."""


class NonFiniteError(AbkdError, ArithmeticError):
    """A loss, gradient or teacher output is NaN or infinite; nothing of it was saved."""

    exit_code = 3


class StorageError(AbkdError, OSError):
    """A checkpoint could not be written; the one before it is whole."""

    exit_code = 4


class ServerError(AbkdError, ConnectionError):
    """A server that writes the teacher's text gave no usable answer; what it wrote before is kept."""

    exit_code = 5


class Interrupted(AbkdError):
    """The run was asked to stop; its state is saved and ``--resume`` goes on from there."""

    exit_code = 130
