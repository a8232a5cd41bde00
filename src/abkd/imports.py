"""Import user code by name: an installed module, or one file in the working directory.

Naming code in a recipe, on the command line or in Python is consent to run it. A file that came with a model is not.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from abkd.errors import ConfigError

logger = logging.getLogger("abkd")

PREFIX = "python:"
_BY_PATH: dict[str, Path] = {}  # modules loaded from a working directory, by name


class CodeName(NamedTuple):
    """A function or class by its module and name, written ``python:package.module:name``."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.module}:{self.name}"

    @classmethod
    def read(cls, text: str) -> CodeName | None:
        """The code that ``python:package.module:name`` names; None if the text has another form."""
        found = re.fullmatch(rf"{PREFIX}([^:]+):(\w+)", text)
        return cls(*found.groups()) if found else None


def is_allowed(module: str, allow_code: Iterable[str]) -> bool:
    """Whether ``allow_code`` has this module, or a package that contains it."""
    return any(module == each or module.startswith(f"{each}.") for each in allow_code)


def locate(module: str) -> Path | None:
    """The file of a module (None if it has none, such as a built-in), found without running any code.

    Installed modules come first, then ``module.py`` in the working directory.

    Raises:
        ConfigError: neither exists; the message lists the places that were searched.
    """
    spec = _installed(module)
    if spec is None:
        return _in_working_directory(module)
    return Path(spec.origin) if spec.has_location and spec.origin else None


def load(module: str, wanted: str = "") -> ModuleType:
    """Import the module; its file is logged before its code runs.

    A file in the working directory is loaded by its path: that directory is never put on ``sys.path``.

    Args:
        wanted: what it is imported for, as the user wrote it, for the log.

    Raises:
        ConfigError: it does not exist, or its code fails.
    """
    spec, file = _installed(module), locate(module)
    if module in sys.modules and _BY_PATH.get(module) in (None, file):
        return sys.modules[module]
    logger.info("abkd: importing %s from %s%s", module, file or "the interpreter", f" for {wanted}" if wanted else "")
    try:
        return importlib.import_module(module) if spec is not None or file is None else _run(module, file)
    except (Exception, SystemExit) as error:  # user code can raise anything
        raise ConfigError(
            f"the module {module} ({file}) cannot be imported: {type(error).__name__}: {error}{_neighbour_hint(error)}"
        ) from error


def attribute(module: str, name: str, wanted: str = "") -> Any:
    """Import a module and return its attribute ``name``.

    Raises:
        ConfigError: as :func:`load`, or the module has no such attribute.
    """
    found = load(module, wanted or str(CodeName(module, name)))
    if not hasattr(found, name):
        there = [each for each, value in vars(found).items() if callable(value) and defined_in(value, module)]
        listed = f"; it defines {', '.join(there[:5])}" if there else ""
        raise ConfigError(f"the module {module} ({getattr(found, '__file__', 'built in')}) has no {name!r}{listed}")
    return getattr(found, name)


def defined_in(value: object, module: str) -> bool:
    """Whether a function or class is defined in this module or below it, and not imported into it."""
    home = str(getattr(value, "__module__", ""))
    return home == module or home.startswith(f"{module}.")


def _installed(module: str) -> ModuleSpec | None:
    """Like ``importlib.util.find_spec``, but without running the code of parent packages."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"a module must be named as in an import, package.module, got {module!r}")
    if module in _BY_PATH:
        return None
    spec, places = None, None
    for number in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:number]), places)
        places = None if spec is None else spec.submodule_search_locations
        if spec is None or (places is None and number < len(parts)):
            return None
    return spec


def _spec(name: str, places: Sequence[str] | None) -> ModuleSpec | None:
    if name in sys.modules:
        return sys.modules[name].__spec__
    return importlib.util.find_spec(name) if places is None else PathFinder.find_spec(name, list(places))


def _in_working_directory(module: str) -> Path:
    file = Path.cwd().joinpath(*module.split(".")).with_suffix(".py")
    if file.is_file():
        return file
    folder, way_out = file.with_suffix(""), "check the name, install it, or run in the folder that contains it"
    if folder.is_dir():
        way_out = f"{folder} is a folder: install the package (pip install -e .)"
    elif module.endswith(".py"):
        way_out = f"write {module.removesuffix('.py')}, without .py"
    raise ConfigError(f"there is no module {module!r}: it is not installed, and there is no file {file}; {way_out}")


def _run(module: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[module], _BY_PATH[module] = made, file  # as an import does: dataclasses and pickle look there
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[module], _BY_PATH[module]
        raise
    return made


def _neighbour_hint(error: BaseException) -> str:
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if not name or not Path(f"{name}.py").is_file():
        return ""
    return f" ({name}.py is in the working directory, from which only the named file is loaded: set PYTHONPATH=.)"
