"""Checkpoints that are whole or are not used: a manifest is written last, older ones are removed after that."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from abkd.errors import OutputDirError

MANIFEST = "abkd_manifest.json"
_PREFIX = "checkpoint-"


def seal(checkpoint: Path) -> None:
    """Write the manifest of a finished checkpoint: sizes and hashes of its files, on disk before the manifest is."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {str(path.relative_to(checkpoint)): _entry(path) for path in files}
    draft = checkpoint / f".{MANIFEST}"
    with draft.open("w") as file:
        json.dump(entries, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(checkpoint / MANIFEST)


def why_broken(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return "it was never finished"
    for name, entry in json.loads(manifest.read_text()).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _entry(path) != entry:
            return f"{name} was changed or cut short"
    return None


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest step first, whole or not."""
    found = [path for path in run_dir.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def newest_whole(run_dir: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that was passed over.

    Raises:
        OutputDirError: there is none.
    """
    passed: list[str] = []
    for checkpoint in reversed(checkpoints(run_dir)):
        reason = why_broken(checkpoint)
        if reason is None:
            return checkpoint, passed
        passed.append(f"{checkpoint.name} is passed over: {reason}")
    detail = "; ".join(passed) or "there is no checkpoint"
    raise OutputDirError(f"nothing to resume in {run_dir}: {detail}. Start without --resume, in another output_dir")


def rotate(run_dir: Path, limit: int | None, keep: str | None) -> None:
    """Remove the oldest checkpoints beyond ``limit``, never the newest nor the best one."""
    if limit is None or limit <= 0:
        return
    found = checkpoints(run_dir)
    safe = {found[-1].name} | ({Path(keep).name} if keep else set())
    surplus = len(found) - max(limit, len(safe))
    for checkpoint in [path for path in found if path.name not in safe][: max(surplus, 0)]:
        (checkpoint / MANIFEST).unlink(missing_ok=True)  # from here on it does not count
        shutil.rmtree(checkpoint)


def _entry(path: Path) -> list[str | int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return [path.stat().st_size, digest]
