"""Whether a path can be the folder of a run, and is none of its inputs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from abkd.errors import OutputDirError
from abkd.storage import check_new


def check_place(path: Path, *, resume: bool = False) -> None:
    """Refuse what can be no folder of a run: a file, a broken link, a name that no file system takes, ``/`` and ``.``.

    Raises:
        OutputDirError: with the reason.
    """
    name = str(path)
    if not name.strip() or not name.isprintable():
        raise OutputDirError(f"output_dir: expected the name of a folder, got {name!a}; name another")
    try:
        real = Path(os.path.realpath(path, strict=False))
        if path.is_symlink() and not path.exists():
            raise OutputDirError(
                f"output_dir: {name!r} is a link to {os.readlink(path)!r}, which is not there; mend it"
            )
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputDirError(f"output_dir: {name!r} is a file; name a directory")
        above = next(each for each in (real, *real.parents) if os.path.lexists(each))
        os.lstat(real) if above == real else _check_new(real, above)
    except (OSError, ValueError) as error:
        if isinstance(error, OutputDirError):
            raise
        raise OutputDirError(
            f"output_dir: {_short(name)} cannot be a folder ({_reason(error)}); name another"
        ) from error
    if real in (Path("/"), Path.home().resolve()) or (real == Path.cwd() and not resume):
        raise OutputDirError(
            f"output_dir: {name!r} is no folder of a run alone; name one of its own, such as distilled"
        )


def _check_new(path: Path, above: Path) -> None:
    """Raise OSError where a folder that is not there yet cannot be made ``above`` it."""
    check_new(path, above)
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(13, f"{above} cannot be written to")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _short(name: str) -> str:
    return repr(name) if len(name) < 80 else repr(name[:60] + "…")


def check_inputs(path: Path, inputs: Mapping[str, Iterable[str]]) -> None:
    """Refuse an output folder that is an input of the run, holds one, or lies in one.

    Args:
        inputs: files, folders or patterns by the name of their setting; what is no local path is passed over.

    Raises:
        OutputDirError: naming the setting.
    """
    out = Path(os.path.realpath(path))
    for name, given in inputs.items():
        for text in given:
            for place in glob.glob(text) if glob.has_magic(text) and not os.path.exists(text) else [text]:
                how = _meets(out, Path(os.path.realpath(place))) if os.path.exists(place) else ""
                if how:
                    raise OutputDirError(
                        f"output_dir: {str(path)!r} {how} {name} ({place}), which a run must not write to; name "
                        "another --output_dir"
                    )


def _meets(out: Path, source: Path) -> str:
    if _same(out, source):
        return "is"
    if any(_same(out, each) for each in source.parents):
        return "holds"
    return "lies in" if source.is_dir() and any(_same(source, each) for each in out.parents) else ""


def _same(one: Path, other: Path) -> bool:
    """Also where a folder is reached by another name (a bind mount, another case of its letters)."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False
