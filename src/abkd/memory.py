"""How much memory there is, and which errors say that it did not suffice: for the guard that chooses the chunk."""

from __future__ import annotations

from pathlib import Path

import torch

_SIGNS = (
    "can't allocate memory",  # torch on CPUs
    "not enough memory",
    "out of memory",
    "could not create a memory",  # oneDNN
    "could not create a primitive",
    "can't start new thread",  # there is no room for its stack
    "bad_alloc",
)
_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_mb(device: torch.device, group: Path = _GROUP) -> float | None:
    """Memory that a process may still take, in MB: of the machine and of its control group; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    known = [mb for mb in (_of_machine(), *(_of_group(group, *names) for names in _LIMITS)) if mb is not None]
    return min(known, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; only GPUs have a type of error for it."""
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
    """What is left of a control group's limit; pages of files, which the system gives back, count as used there."""
    try:
        most, used = (group / limit).read_text(encoding="utf-8"), (group / usage).read_text(encoding="utf-8")
        return (int(most) - int(used)) / 2**20
    except (OSError, ValueError):  # no such group, or the limit is "max"
        return None
