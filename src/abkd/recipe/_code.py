"""Code that a recipe names: a recipe of the user's own may import it, one that lies with a run or a model may not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from abkd import imports, notation
from abkd.errors import ConfigError
from abkd.imports import CodeName
from abkd.outside import Unloaded
from abkd.recipe._checks import MODELS
from abkd.recipe._files import belongs_to
from abkd.settings import COMPONENTS


def check_code(values: Mapping[str, object], files: Mapping[str, Path], allow_code: Collection[str]) -> None:
    """Check that each value from a recipe in the folder of a run or a model names only code in ``allow_code``.

    Such a recipe is a record, or came with a download. Nothing is imported.

    Args:
        files: the recipe file of each value, as ``read_with_files`` gives it; other values were typed by the user.
        allow_code: modules, and packages with all their modules.

    Raises:
        ConfigError: a value names other code; the message names it and the flag that allows it.
    """
    owners = {file: belongs_to(file) for file in set(files.values())}
    for name, file in files.items():
        whose = owners[file]
        for code in _code(name, values[name]) if whose else ():
            if not imports.is_allowed(code.module, allow_code):
                raise ConfigError(
                    f"{name}: {file} lies in the folder of {whose} and names code, so running it would import "
                    f"{code.module}{_place(code.module)} for {code}. If you trust this module, add --allow_code "
                    f"{code.module}; a recipe of your own belongs in another folder"
                )


def _code(name: str, value: object) -> Iterator[CodeName]:
    """The code that a value names, as far as its setting can name any."""
    if isinstance(value, list):
        for part in value:
            yield from _code(name, part)
    elif isinstance(value, str) and name in COMPONENTS:
        try:
            found = notation.read(value)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        yield from found.code if isinstance(found, Unloaded) else ()
    elif isinstance(value, str) and name in MODELS and (code := CodeName.read(value)):
        yield code


def _place(module: str) -> str:
    try:
        file = imports.locate(module)
    except ConfigError:
        return " (not found here)"
    return f" ({file})" if file else ""
