"""Recipe files of the user and those shipped with abkd, and ``extends``. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

from abkd import notation
from abkd.errors import ConfigError
from abkd.recipe._text import read_file, read_mapping

_OF_RUN = (".abkd_files.json", "run.json", "sweep.json")
_OF_MODEL = ("config.json", "adapter_config.json", "abkd.json", "model.safetensors", "adapter_model.safetensors")
_BASE = "protocol"  # the base that the recipes of a folder extend, not a recipe by itself


def shipped() -> dict[str, Path]:
    """The recipes shipped with abkd: file by name, as in ``abkd show NAME`` and ``abkd distill NAME``.

    Names include the folder, such as ``cifar100/teacher``.
    """
    return {name: file for name, file in _all_shipped().items() if file.stem != _BASE}


def read_recipe(path: str | Path) -> dict[str, object]:
    """The values of a recipe file, or of the shipped recipe of that name, on top of those of the recipe it extends.

    ``extends: NAME`` names another recipe, a file relative to this one's folder or a shipped one; ``null`` unsets an
    inherited value.

    Raises:
        ConfigError: no such file, not YAML, or recipes that extend each other.
    """
    return read_with_files(path)[0]


def read_with_files(path: str | Path) -> tuple[dict[str, object], dict[str, Path]]:
    """As :func:`read_recipe`, and for each value the file that it is from.

    What a recipe in the folder of a run or a model extends counts as its own: the user chose neither.
    """
    return _extended(_found(path), str(path), ())


def _extended(file: Path, name: str, chain: tuple[Path, ...]) -> tuple[dict[str, object], dict[str, Path]]:
    values = read_mapping(read_file(file), name)
    base = values.pop("extends", None)
    read_from = dict.fromkeys(values, file)
    if base is None:
        return values, read_from
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{name}: extends must be the name of one recipe, got {base!r}")
    chain = (*chain, file.resolve())
    try:
        other = _found(file.parent / base) if _is((file.parent / base).is_file) else _found(base)
    except ConfigError as error:
        raise ConfigError(f"{name}: extends: {error}") from error
    if other.resolve() in chain:
        raise ConfigError(f"{name}: extends {base}, which extends it in turn: remove one of the two")
    inherited, from_others = _extended(other, str(base), chain)
    if belongs_to(file):
        from_others = dict.fromkeys(from_others, file)
    return {**inherited, **values}, {**from_others, **read_from}


def belongs_to(file: Path) -> str:
    """Whether a file lies in the folder of a run or a model: "a run", "a model" or ""; links are followed too."""
    folders = {folder: None for path in (Path(os.path.abspath(file)), file.resolve()) for folder in _folders(path)}
    for whose, names in (("a run", _OF_RUN), ("a model", _OF_MODEL)):
        if any((folder / name).is_file() for folder in folders for name in names):
            return whose
    return ""


def _folders(file: Path) -> Iterator[Path]:
    """The folder of a file, and those that contain it, up to the working directory or the user's home."""
    ends = (Path.cwd(), Path.home())
    yield file.parent
    for folder in file.parent.parents if file.parent not in ends else ():
        if folder in ends:
            return
        yield folder


def _all_shipped() -> dict[str, Path]:
    found = Path(str(files("abkd"))) / "recipes"
    names = {file.relative_to(found).with_suffix("").as_posix(): file for file in found.rglob("*.yaml")}
    return dict(sorted(names.items(), key=lambda named: ("/" in named[0], named[0])))


def _found(path: str | Path) -> Path:
    file, name = Path(path), str(path)
    if _is(file.is_file):
        return file
    known = _all_shipped()
    if _is(file.exists) and name not in known:
        raise ConfigError(f"expected a recipe file, got {name!r}, which is a directory, a pipe or a device")
    name = name[:200]
    if "/" in name:  # accept paths of the source tree too: recipes/cifar100/teacher.yaml
        name = name.removeprefix("recipes/").removesuffix(".yaml")
    if name in known:
        return known[name]
    near = notation.nearest(name, known)
    glue = "; the" if near == "." else f"{near} The"
    raise ConfigError(f"there is no recipe file {str(path)!r}{glue} shipped recipes are {_list_shipped()}")


def _list_shipped() -> str:
    """The shipped recipes in one line; for a folder, their number and one name."""
    plain = [name for name in shipped() if "/" not in name]
    folders = sorted({name.partition("/")[0] for name in shipped() if "/" in name})
    inside = [[name for name in shipped() if name.startswith(f"{folder}/")] for folder in folders]
    return ", ".join([*plain, *(f"{len(names)} like {names[-1]}" for names in inside)])


def _is(test: Callable[[], bool]) -> bool:
    """The result of a test of a path; False for a name that no file can have."""
    try:
        return test()
    except OSError:
        return False
