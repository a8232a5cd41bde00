"""Checkpoints are used only if complete: the manifest is written last, and only then are older ones removed."""

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
from torch import Tensor, nn

from abkd.errors import OutputDirError
from abkd.models.folders import Stored, stored_tensors
from abkd.output_dir import OF_CHECKPOINT, files_of
from abkd.storage import atomic_write, disk_errors, read_json

logger = logging.getLogger("abkd")

MANIFEST = OF_CHECKPOINT
_PREFIX = "checkpoint-"


def seal(checkpoint: Path) -> None:
    """Write the manifest of a finished checkpoint (sizes and hashes of its files), after syncing the files to disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {str(path.relative_to(checkpoint)): _entry(path) for path in files}
    atomic_write(checkpoint / MANIFEST, json.dumps(entries, indent=1).encode())


def corruption(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is complete."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return "it is incomplete"
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
            return f"{name} was modified or truncated"
    return None if entries else "it is empty"


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was saved; -1 without a checkpoint, or if its name does not give the step."""
    number = "" if checkpoint is None else checkpoint.name.removeprefix(_PREFIX)
    return int(number) if number.isdigit() else -1


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, earliest step first, complete or not."""
    return sorted((path for path in run_dir.glob(f"{_PREFIX}*") if step_of(path) >= 0), key=step_of)


def choose(run_dir: Path, requested: str | bool | None) -> Path | None:
    """The checkpoint to resume from: the ``requested`` one, the latest complete one for True, or None.

    Raises:
        OutputDirError: there is none, or the requested one is damaged.
    """
    if not requested:
        return None
    if requested is True:
        checkpoint, passed = newest_whole(run_dir)
        for sentence in passed:
            logger.warning("abkd: %s", sentence)
        return checkpoint
    path = Path(requested)
    reason = corruption(path) if (path / MANIFEST).exists() else None  # other tools write no manifest
    if reason is not None:
        raise OutputDirError(
            f"cannot resume from {requested}: {reason}. Use an older checkpoint, or let --resume choose one"
        )
    if not path.is_dir():
        raise OutputDirError(f"cannot resume from {requested}: no such directory; use a checkpoint-… of the run")
    return path


def check_optimizer(checkpoint: Path) -> None:
    """Raise OutputDirError if only the model was saved."""
    if not (checkpoint / "scheduler.pt").is_file():
        raise OutputDirError(
            f"cannot resume from {checkpoint}: it was saved with save_only_model and has no optimizer state. Start a "
            "new run with it as the student"
        )


def check_student(checkpoint: Path, model: nn.Module) -> None:
    """Raise OutputDirError if the weights in a checkpoint differ from this student's in name or shape.

    transformers would continue with those that match. Adapters and shards are stored under other names and checked by
    the libraries that load them.
    """
    stored = stored_tensors(str(checkpoint))
    why = _why_another(stored, model) if stored and not hasattr(model, "get_base_model") else None
    if why is not None:
        raise OutputDirError(
            f"cannot resume from {checkpoint}: it belongs to another student ({why}). Use the student that the run "
            "started with, or start over in another output_dir"
        )


def _why_another(stored: Mapping[str, Stored], model: nn.Module) -> str | None:
    """How the weights of a model differ from the stored ones, or None if they do not."""
    held: dict[int, dict[str, Tensor]] = {}  # one tensor may have several names
    for name, tensor in model.named_parameters(remove_duplicate=False):
        held.setdefault(id(tensor), {})[name] = tensor
    stored_once = hasattr(model, "save_pretrained")  # under one of its names; a plain module stores them all
    for tensors in held.values():
        there = [name for name in tensors if name in stored]
        if not there:
            return f"it has no {next(iter(tensors))}"
        for name in there:
            if stored[name].shape != tensors[name].shape:
                return f"{name} has shape {list(stored[name].shape)} there, {list(tensors[name].shape)} now"
        if stored_once and len(there) > 1:
            return f"{there[0]} and {there[1]} are separate there, tied now"
    known = {name for tensors in held.values() for name in tensors} | dict(model.named_buffers()).keys()
    unknown = min(stored.keys() - known, default=None)
    return None if unknown is None else f"it has {unknown}, which this one does not"


def newest_whole(run_dir: Path) -> tuple[Path, list[str]]:
    """The latest complete checkpoint, and a sentence for each later one that was skipped.

    Raises:
        OutputDirError: there is none.
    """
    passed: list[str] = []
    for checkpoint in reversed(checkpoints(run_dir)):
        reason = corruption(checkpoint)
        if reason is None:
            return checkpoint, passed
        passed.append(f"{checkpoint.name} is skipped: {reason}")
    detail = "; ".join(passed) or "there is no checkpoint"
    raise OutputDirError(f"nothing to resume in {run_dir}: {detail}. Start without --resume, in another output_dir")


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Keep the last ``limit`` checkpoints of a run, including the ``newest``, and also the ``best`` one."""
    if limit is None or limit <= 0:
        return
    others = [path for path in checkpoints(newest.parent) if path.name != newest.name]
    older = others[: max(len(others) - limit + 1, 0)]
    for checkpoint in [path for path in older if best is None or path.name != Path(best).name]:
        discard(checkpoint)


def unshared(model: nn.Module, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The weights, unshared and contiguous, as safetensors requires for a plain module.

    In ``torch.channels_last`` the weights of convolutions are not contiguous.
    """
    if hasattr(model, "save_pretrained"):  # it handles shared weights itself
        return state
    seen: set[int] = set()
    made = {}
    for name, value in (model.state_dict() if state is None else state).items():
        place = value.untyped_storage().data_ptr()
        made[name] = value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        seen.add(place)
    return made


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint if it exists, its manifest first so that it is invalid at once; keep files of other tools."""
    ours = files_of(checkpoint)
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    for path in sorted(checkpoint.rglob("*"), reverse=True):  # contents before their folder
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif ours(path.relative_to(checkpoint).as_posix()):
                path.unlink()
    with suppress(OSError):
        checkpoint.rmdir()
    left = next((path.name for path in checkpoint.rglob("*")), None)
    if left is not None:
        logger.warning("abkd: %s was not removed, because it contains %s, which no run wrote", checkpoint, left)


@contextmanager
def writing(checkpoint: Path, *, clear: bool, before: bool) -> Iterator[None]:
    """Write a checkpoint in this context: an older one of the same name is removed first, an unfinished one at the end.

    ``clear``: whether this process removes them. ``before``: whether the run has an earlier checkpoint.

    Raises:
        StorageError: the disk is full or not writable.
    """
    if clear:
        discard(checkpoint)
    kept = "The previous checkpoint is complete; free some disk space and continue with --resume"
    try:
        with disk_errors(
            f"the checkpoint {checkpoint}", kept if before else "It was the first; free some disk space and start over"
        ):
            yield
    except Exception:
        if clear:
            discard(checkpoint)
        raise


@contextmanager
def original_weight_names(model: Any) -> Iterator[None]:
    """Save a checkpoint in this context with the weight names of the model.

    transformers 5 saves some families (ViT, fused experts) under the names of older versions, but its Trainer looks for
    the names of the model when it resumes: it would silently continue with random weights.
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
    """Remove the arguments that transformers pickles next to the weights: unused, and a pickle can contain code."""
    (Path(str(directory)) / "training_args.bin").unlink(missing_ok=True)


def _entry(path: Path) -> list[str | int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return [path.stat().st_size, digest]
