"""Available memory and out-of-memory errors, for choosing the chunk size."""

from __future__ import annotations

from pathlib import Path

import torch

_SIGNS = (
    "can't allocate memory",  # torch on CPUs
    "not enough memory",
    "out of memory",
    "could not create a memory",  # oneDNN
    "could not create a primitive",
    "can't start new thread",  # no memory for its stack
    "bad_alloc",
)
_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_mb(device: torch.device, group: Path = _GROUP) -> float | None:
    """Memory that a process can still allocate, in MB, on the machine and in its cgroup; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    known = [mb for mb in (_of_machine(), *(_of_group(group, *names) for names in _LIMITS)) if mb is not None]
    return min(known, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; only GPUs have an exception type for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def _of_machine() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes[0]) / 2**10 if kilobytes else None


def _of_group(group: Path, limit: str, usage: str) -> float | None:
    """Memory left below the limit of a cgroup, which counts reclaimable file cache as used."""
    try:
        most, used = (group / limit).read_text(encoding="utf-8"), (group / usage).read_text(encoding="utf-8")
        return (int(most) - int(used)) / 2**20
    except (OSError, ValueError):  # no such group, or the limit is "max"
        return None
