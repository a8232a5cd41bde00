"""Checkpoints that are whole or are not used: a manifest is written last, older ones are removed after that."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from abkd.errors import OutputDirError
from abkd.models.folders import Stored, stored_tensors
from abkd.output_dir import OF_CHECKPOINT, files_of
from abkd.storage import atomic_write, disk_errors, read_json

logger = logging.getLogger("abkd")

MANIFEST = OF_CHECKPOINT
_PREFIX = "checkpoint-"


def seal(checkpoint: Path) -> None:
    """Write the manifest of a finished checkpoint: sizes and hashes of its files, on disk before the manifest is."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {str(path.relative_to(checkpoint)): _entry(path) for path in files}
    atomic_write(checkpoint / MANIFEST, json.dumps(entries, indent=1).encode())


def corruption(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is complete."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return "it was never finished"
    try:
        entries = dict(read_json(manifest))
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name, entry in entries.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            same = _entry(path) == entry
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not same:
            return f"{name} was changed or cut short"
    return None if entries else "it holds nothing"


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was saved; -1 if there is none, or if its name does not tell."""
    number = "" if checkpoint is None else checkpoint.name.removeprefix(_PREFIX)
    return int(number) if number.isdigit() else -1


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest step first, whole or not."""
    return sorted((path for path in run_dir.glob(f"{_PREFIX}*") if step_of(path) >= 0), key=step_of)


def choose(run_dir: Path, asked: str | bool | None) -> Path | None:
    """Where to resume: the checkpoint ``asked`` for, the newest whole one for True, or nowhere.

    Raises:
        OutputDirError: there is none, or the one asked for is broken.
    """
    if not asked:
        return None
    if asked is True:
        checkpoint, passed = newest_whole(run_dir)
        for sentence in passed:
            logger.warning("abkd: %s", sentence)
        return checkpoint
    reason = corruption(Path(asked)) if (Path(asked) / MANIFEST).exists() else None  # others write no manifest
    if reason is not None:
        raise OutputDirError(
            f"cannot resume from {asked}: {reason}. Choose an older checkpoint, or let --resume choose"
        )
    if not Path(asked).is_dir():
        raise OutputDirError(f"cannot resume from {asked}: there is no such directory; name a checkpoint-… of the run")
    return Path(asked)


def check_optimizer(checkpoint: Path) -> None:
    """Raise OutputDirError where only the model was saved."""
    if not (checkpoint / "scheduler.pt").is_file():
        raise OutputDirError(
            f"cannot resume from {checkpoint}, saved with save_only_model: it has no optimizer to go on with. Start a "
            "new run, with it as the student"
        )


def check_student(checkpoint: Path, model: Any) -> None:
    """Raise OutputDirError where a checkpoint holds other weights than this student has, by name and shape.

    transformers goes on with what fits. Adapters and shards are stored under other names, and loaded by who knows them.
    """
    stored = stored_tensors(str(checkpoint))
    why = _why_another(stored, model) if stored and not hasattr(model, "get_base_model") else None
    if why is not None:
        raise OutputDirError(
            f"cannot resume from {checkpoint}: it is of another student ({why}). Put the student back that the run "
            "began with, or start anew in another output_dir"
        )


def _why_another(stored: Mapping[str, Stored], model: Any) -> str | None:
    """How the weights of a model differ from stored ones; None where they do not."""
    held: dict[int, dict[str, Any]] = {}  # one tensor may have several names
    for name, tensor in model.named_parameters(remove_duplicate=False):
        held.setdefault(id(tensor), {})[name] = tensor
    stored_once = hasattr(model, "save_pretrained")  # under one of its names; a plain module stores them all
    for tensors in held.values():
        there = [name for name in tensors if name in stored]
        if not there:
            return f"it has no {next(iter(tensors))}"
        for name in there:
            if stored[name].shape != tensors[name].shape:
                return f"{name} is {list(stored[name].shape)} there and {list(tensors[name].shape)} now"
        if stored_once and len(there) > 1:
            return f"{there[0]} and {there[1]} are two there and one now"
    known = {name for tensors in held.values() for name in tensors} | dict(model.named_buffers()).keys()
    unknown = min(stored.keys() - known, default=None)
    return None if unknown is None else f"it holds {unknown}, which this one has not"


def newest_whole(run_dir: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that was passed over.

    Raises:
        OutputDirError: there is none.
    """
    passed: list[str] = []
    for checkpoint in reversed(checkpoints(run_dir)):
        reason = corruption(checkpoint)
        if reason is None:
            return checkpoint, passed
        passed.append(f"{checkpoint.name} is passed over: {reason}")
    detail = "; ".join(passed) or "there is no checkpoint"
    raise OutputDirError(f"nothing to resume in {run_dir}: {detail}. Start without --resume, in another output_dir")


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Keep ``limit`` checkpoints of a run (the ``newest``, those of the latest steps) and the ``best`` one besides."""
    if limit is None or limit <= 0:
        return
    others = [path for path in checkpoints(newest.parent) if path.name != newest.name]
    older = others[: max(len(others) - limit + 1, 0)]
    for checkpoint in [path for path in older if best is None or path.name != Path(best).name]:
        discard(checkpoint)


def unshared(model: Any, state: dict[str, Any] | None) -> dict[str, Any] | None:
    """The weights, each on its own and row by row: of a plain module safetensors takes neither shared nor turned ones.

    In ``torch.channels_last`` all of a convolution are turned.
    """
    if hasattr(model, "save_pretrained"):  # which knows what it shares
        return state
    seen: set[int] = set()
    made = {}
    for name, value in (model.state_dict() if state is None else state).items():
        place = value.untyped_storage().data_ptr()
        made[name] = value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        seen.add(place)
    return made


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint, if it is there; from the first moment on it does not count. Files of others in it stay."""
    ours = files_of(checkpoint)
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    for path in sorted(checkpoint.rglob("*"), reverse=True):  # what is inside before its folder
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif ours(path.relative_to(checkpoint).as_posix()):
                path.unlink()
    with suppress(OSError):
        checkpoint.rmdir()
    left = next((path.name for path in checkpoint.rglob("*")), None)
    if left is not None:
        logger.warning("abkd: %s stays, because it holds %s, which no run wrote", checkpoint, left)


@contextmanager
def writing(checkpoint: Path, *, clear: bool, before: bool) -> Iterator[None]:
    """While a checkpoint is written: nothing older lies in its place, and nothing of it stays if it is not finished.

    ``clear``: whether this process does the clearing. ``before``: whether the run has an earlier checkpoint.

    Raises:
        StorageError: the disk refused.
    """
    if clear:
        discard(checkpoint)
    kept = "The one before it is whole; make room and go on with --resume"
    try:
        with disk_errors(
            f"the checkpoint {checkpoint}", kept if before else "It was the first; make room and begin again"
        ):
            yield
    except Exception:
        if clear:
            discard(checkpoint)
        raise


@contextmanager
def original_weight_names(model: Any) -> Iterator[None]:
    """While a checkpoint is written: its weights keep the names that they have in the model.

    transformers 5 writes some families (ViT, fused experts) under the names of older versions, and its Trainer looks
    for them under those of the model when it resumes: it would go on with random weights, and not say so.
    """
    original = getattr(model, "save_pretrained", None)
    if original is None or "save_original_format" not in inspect.signature(original).parameters:
        yield
        return
    model.save_pretrained = functools.partial(original, save_original_format=False)
    try:
        yield
    finally:
        del model.save_pretrained


def drop_pickle(directory: str | Path | None) -> None:
    """Remove the arguments that transformers pickles beside the weights: nothing reads them; a pickle can hold code."""
    (Path(str(directory)) / "training_args.bin").unlink(missing_ok=True)


def _entry(path: Path) -> list[str | int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return [path.stat().st_size, digest]
