"""Checks that a path can be the output directory of a run and is not one of its inputs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from abkd.errors import OutputDirError
from abkd.storage import check_new


def check_place(path: Path, *, resume: bool = False) -> None:
    """Reject what cannot be an output directory: a file, a broken link, an invalid name, ``/``, ``~`` and ``.``.

    Raises:
        OutputDirError: with the reason.
    """
    name = str(path)
    if not name.strip() or not name.isprintable():
        raise OutputDirError(f"output_dir: expected the name of a folder, got {name!a}; use another")
    try:
        real = Path(os.path.realpath(path, strict=False))
        if path.is_symlink() and not path.exists():
            raise OutputDirError(
                f"output_dir: {name!r} is a link to {os.readlink(path)!r}, which does not exist; fix the link"
            )
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputDirError(f"output_dir: {name!r} is a file; use a directory")
        above = next(each for each in (real, *real.parents) if os.path.lexists(each))
        os.lstat(real) if above == real else _check_new(real, above)
    except (OSError, ValueError) as error:
        if isinstance(error, OutputDirError):
            raise
        raise OutputDirError(
            f"output_dir: {_short(name)} cannot be a folder ({_reason(error)}); use another"
        ) from error
    if real in (Path("/"), Path.home().resolve()) or (real == Path.cwd() and not resume):
        raise OutputDirError(
            f"output_dir: {name!r} is not a folder for a single run; use a separate one, such as distilled"
        )


def _check_new(path: Path, above: Path) -> None:
    """Raise OSError if a new folder cannot be created below its existing parent ``above``."""
    check_new(path, above)
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(13, f"{above} cannot be written to")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _short(name: str) -> str:
    return repr(name) if len(name) < 80 else repr(name[:60] + "…")


def check_inputs(path: Path, inputs: Mapping[str, Iterable[str]]) -> None:
    """Reject an output folder that is an input of the run, contains one, or is inside one.

    Args:
        inputs: files, folders or patterns by the name of their setting; anything else is skipped.

    Raises:
        OutputDirError: with the name of the setting.
    """
    out = Path(os.path.realpath(path))
    for name, given in inputs.items():
        for text in given:
            for place in glob.glob(text) if glob.has_magic(text) and not os.path.exists(text) else [text]:
                how = _meets(out, Path(os.path.realpath(place))) if os.path.exists(place) else ""
                if how:
                    raise OutputDirError(
                        f"output_dir: {str(path)!r} {how} {name} ({place}), which a run must not write to; use "
                        "another --output_dir"
                    )


def _meets(out: Path, source: Path) -> str:
    if _same(out, source):
        return "is"
    if any(_same(out, each) for each in source.parents):
        return "contains"
    return "is inside" if source.is_dir() and any(_same(source, each) for each in out.parents) else ""


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are the same folder, also by different names (a bind mount, another letter case)."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False
