"""The machine: its description, its free memory, and the time and peak memory of a call."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_VERSIONS = ("torch", "trl", "liger-kernel", "transformers")
LOSS = ("src/abkd/ops", "src/abkd/divergences")
"""The folders with the code of the loss."""
_UNLIMITED = 1 << 60
NO_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}  # selects our eager path


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(threads: int, device: str) -> dict[str, Any]:
    """Everything that a figure depends on in addition to the case; only figures with equal facts are compared."""
    versions: dict[str, str | None] = {}
    for package in _VERSIONS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": cores(),
        "threads": threads,
        "device": _device(device),
        "python": platform.python_version(),
        **versions,
    }


def code_digest(folders: Sequence[str] = LOSS) -> str:
    """A hash of the measured code."""
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted([*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.[ch]")]):
            total.update(file.read_bytes())
    return total.hexdigest()[:12]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _device(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def available_bytes(device: str = "cpu") -> int:
    """The memory available for new tensors: free system memory, within the limits of this process's control groups."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    return min([psutil.virtual_memory().available, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """Free bytes in each memory control group of this process (versions 1 and 2), from the innermost outwards."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None and limit < _UNLIMITED:
                yield limit - used


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def peak_above(call: Callable[[], object], device: str) -> tuple[int, str]:
    """The peak memory of one call above the memory before it, in bytes, and the name of the counter that was read."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, "torch.cuda.max_memory_allocated"
    if can_reset_peak():
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before, "VmHWM"
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit, "ru_maxrss"


def can_reset_peak() -> bool:
    """Return freed memory to the system and reset the peak, if the system supports it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status("VmHWM")
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, StopIteration):
        return False
    return True


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field + ":")))
