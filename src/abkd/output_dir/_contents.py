"""The files of a folder that abkd runs wrote: a manifest lists them before they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from abkd.errors import OutputDirError
from abkd.output_dir._lock import LOCK, is_held
from abkd.storage import DRAFTS, atomic_write, disk_errors, read_json, strict_json

MANIFEST = ".abkd_files.json"
OF_CHECKPOINT = "abkd_manifest.json"
"""The manifest of a finished checkpoint: its files, with sizes and hashes."""

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_RUN = {"run.json", "recipe.yaml"}
_SWEEP = {"sweep.json", "recipe.yaml"}
_RECORDS = {*_RUN, "metrics.jsonl", "report.html", "result.json", "sweep.json", "demo.json"}
_OF_MODELS = {
    *("config.json", "generation_config.json", "training_args.bin", "adapter_config.json", "abkd.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json"),
}
_WEIGHTS = re.compile(r"(model|adapter_model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_DRAFT_OF = re.compile(r"\.(.+)\.[0-9a-f]+\.draft")
_TRACKERS = "events.out.tfevents.*"
_HALF_WRITTEN = re.compile(
    r".*\.(safetensors|pt|pth|bin|json|jinja|txt|model|distcp|draft)|\.metadata|README\.md|(pytorch_model|optimizer|global_step).*"
)  # PEFT writes README.md next to an adapter before anything else


@dataclass
class Contents:
    """Files and folders (which end in /) of an output folder, as relative paths, contents before their folder.

    ``ours``: written by abkd runs. ``foreign``: everything else. ``drafts``: temporary files of a process that died.
    """

    ours: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[str]:
        """Everything except drafts."""
        return [*self.ours, *self.foreign]

    @property
    def begun(self) -> bool:
        """Whether a run has written its recipe or its record, and nothing is foreign."""
        return bool(_RUN.intersection(self.ours)) and not self.foreign


def contents(directory: Path) -> Contents:
    """Files and folders in a folder; empty if it does not exist. Links in it are never followed."""
    found = Contents()
    if directory.is_dir():
        _classify(directory, "", frozenset(), None, found)
    return found


def _classify(
    directory: Path, prefix: str, listed: frozenset[str], known: Callable[[str], bool] | None, found: Contents
) -> None:
    """Classify the entries of a folder.

    Args:
        listed: paths in it that the manifest of a parent folder lists.
        known: for a folder that abkd wrote as a whole, whether a file in it has a name that abkd uses.
    """
    entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    there = {entry.name for entry in entries}
    records = {
        _DRAFT_OF.sub(r"\1", name) for name in there
    }  # a process that died while writing one has written the others
    names = listed | noted(directory) | _sealed(directory)
    if MANIFEST not in there and (records >= _RUN or records >= _SWEEP):  # from before there were manifests
        known, names = _of_a_run, names | _runs_of_sweep(directory)
    for entry in entries:
        path, ours = prefix + entry.name, entry.name in names or (known is not None and known(entry.name))
        if entry.name in (MANIFEST, LOCK):
            continue
        if not entry.is_dir(follow_symlinks=False):
            (found.drafts if _is_draft(entry.name) else found.ours if ours else found.foreign).append(path)
            continue
        below = frozenset(name.removeprefix(f"{entry.name}/") for name in names if name.startswith(f"{entry.name}/"))
        if ours or below or _is_draft(entry.name):
            inside = known if known is _in_half_written else _known_in(Path(entry.path))
            _classify(Path(entry.path), f"{path}/", below, None if below else inside, found)
            found.ours.append(f"{path}/")
        elif any(name != LOCK for _, _, inside in os.walk(entry.path) for name in inside):  # empty folders do not count
            found.foreign.append(f"{path}/")


def _known_in(folder: Path) -> Callable[[str], bool] | None:
    """Which files are ours in a folder that a manifest lists as a whole."""
    if (folder / MANIFEST).is_file() or (folder / OF_CHECKPOINT).is_file():
        return None
    half = _CHECKPOINT.fullmatch(folder.name) or _is_draft(folder.name)
    return _in_half_written if half else _of_a_run


def _is_draft(name: str) -> bool:
    return fnmatchcase(name, DRAFTS)


def _of_a_run(name: str) -> bool:
    return bool(
        name in _RECORDS | _OF_MODELS or _WEIGHTS.fullmatch(name) or _CHECKPOINT.fullmatch(name)
    ) or fnmatchcase(name, _TRACKERS)


def _in_half_written(name: str) -> bool:
    return bool(_HALF_WRITTEN.fullmatch(name))


def files_of(checkpoint: Path) -> Callable[[str], bool]:
    """Which paths in a checkpoint are ours: those in its manifest, or those with known names if it is unfinished."""
    sealed = _sealed(checkpoint)
    return sealed.__contains__ if sealed else lambda path: _in_half_written(path.rpartition("/")[2])


def _sealed(directory: Path) -> frozenset[str]:
    """The files of a finished checkpoint."""
    entries = _json(directory / OF_CHECKPOINT)
    return frozenset({*entries, OF_CHECKPOINT}) if isinstance(entries, dict) else frozenset()


def _runs_of_sweep(directory: Path) -> frozenset[str]:
    found = _json(directory / "sweep.json")
    settings = found.get("settings", []) if isinstance(found, dict) else []
    try:
        return frozenset(run["directory"] for setting in settings for run in setting["runs"])
    except (LookupError, TypeError):
        return frozenset()


def _json(path: Path) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def noted(directory: Path) -> frozenset[str]:
    """The names in the manifest of a folder; empty if there is no readable manifest."""
    names = _json(directory / MANIFEST)
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def note(directory: Path, *names: str) -> None:
    """Add files or folders to the manifest, before they are written."""
    known = noted(directory)
    if not known.issuperset(names):
        with disk_errors(str(directory / MANIFEST), "Free some disk space and try again"):
            atomic_write(directory / MANIFEST, strict_json(sorted(known.union(names))).encode())


def check_overwrite(directory: Path) -> None:
    """Refuse to replace a folder that contains files that abkd did not write.

    Raises:
        OutputDirError: with the names of such files.
    """
    foreign = contents(directory).foreign
    if foreign:
        some = ", ".join(foreign[:3]) + f" and {len(foreign) - 3} more" * (len(foreign) > 3)
        raise OutputDirError(
            f"output_dir: {str(directory)!r} contains files that abkd did not write ({some}), so it is not replaced "
            "and nothing was changed; move them elsewhere, or use another --output_dir"
        )


def remove_runs(directory: Path) -> None:
    """Remove what abkd runs wrote into a folder; checkpoints are invalidated first, and the manifest is removed last.

    Raises:
        OutputDirError: it contains something else; then nothing is changed.
    """
    check_overwrite(directory)
    found = contents(directory)
    paths = [*found.drafts, *found.ours]
    for name in sorted(paths, key=lambda name: not name.endswith((OF_CHECKPOINT, "result.json"))):
        path = directory / name
        if not name.endswith("/"):
            path.unlink(missing_ok=True)
            continue
        (path / MANIFEST).unlink(missing_ok=True)
        if not is_held(path):
            (path / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # something was added to it meanwhile
            path.rmdir()
    (directory / MANIFEST).unlink(missing_ok=True)
