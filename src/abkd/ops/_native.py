"""The row function of ``rows.c``, compiled once per machine with the compiler found there and kept in the cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from abkd.cache import cache_directory
from abkd.divergences import Pointwise

_SOURCE = Path(__file__).with_name("rows.c")
_FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp-simd", "-w"]
_BITS = {torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}
_NUMBERS = 5  # per row: see abkd_rows
_PIECES = 4  # per thread: the last to finish keeps nobody waiting for long

RowFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, tuple[float, ...], bool], Tensor]


class BuildError(Exception):
    """The compiler is there but did not give a library; the message is one line."""


def find_compiler() -> str | None:
    """``$CC``, ``cc``, ``gcc`` or ``clang``, whichever is there first."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "cc", "gcc", "clang"))), None)


def serves(divergence: object, *logits: Tensor) -> bool:
    """Whether ``rows.c`` can do this divergence on these logits."""
    return (
        isinstance(divergence, Pointwise)
        and divergence.native is not None
        and all(each.device.type == "cpu" and each.dtype in _BITS for each in logits)
    )


def row_function(divergence: Pointwise, student: torch.dtype, teacher: torch.dtype) -> RowFunction:
    """``f(z, y, weight, targets, numbers, grad) -> [n, 5]``: D, CE, H(q), H(p), agreement of each row, in float64.

    ``z`` and ``y`` are logits ``[n, V]``; with ``grad`` ``z`` is overwritten by the gradient of
    ``Σ weight·(ce·CE + kd·D)``. ``numbers`` begins with 1/temperature, ce and kd.

    Raises:
        BuildError: the compiler failed.
    """
    wide = divergence.wide or torch.float64 in (student, teacher)
    assert divergence.native is not None
    return functools.partial(
        _call, _library(divergence.native, len(divergence.numbers), wide, _BITS[student], _BITS[teacher])
    )


def _call(
    function: Callable[..., int],
    z: Tensor,
    y: Tensor,
    weight: Tensor,
    targets: Tensor | None,
    numbers: tuple[float, ...],
    grad: bool,
) -> Tensor:
    rows, classes = z.shape
    y = y.contiguous()
    assert z.is_contiguous()
    out = torch.empty(rows, _NUMBERS, dtype=torch.float64)
    weight = weight.to(torch.float64).contiguous()
    targets = None if targets is None else targets.to(torch.int64).contiguous()
    values = (ctypes.c_double * len(numbers))(*numbers)

    def some(start: int, stop: int) -> int:
        def at(tensor: Tensor | None) -> ctypes.c_void_p | None:
            return None if tensor is None else ctypes.c_void_p(tensor[start:].data_ptr())

        count = ctypes.c_int64(stop - start), ctypes.c_int64(classes)
        return function(at(z), at(y), *count, at(weight), at(targets), values, at(out), int(grad))

    threads = min(torch.get_num_threads(), rows)
    if threads < 2:
        failed = some(0, rows)
    else:  # ctypes lets go of the interpreter's lock
        step = -(-rows // (threads * _PIECES))
        starts = range(0, rows, step)
        with ThreadPoolExecutor(threads) as pool:
            failed = max(pool.map(some, starts, (min(start + step, rows) for start in starts)))
    if failed:
        raise MemoryError(f"no memory for one row of {classes} classes")
    return out


@functools.cache
def _library(terms: str, numbers: int, wide: bool, student_bits: int, teacher_bits: int) -> Callable[..., int]:
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C compiler was found")
    known = {"WIDE": int(wide), "STUDENT_BITS": student_bits, "TEACHER_BITS": teacher_bits, "NUMBERS": numbers}
    head = "".join(f"#define {name} {value}\n" for name, value in known.items())
    source = head + _SOURCE.read_text(encoding="utf-8").replace("\n    TERMS\n", f"\n{terms}\n")
    command = [compiler, *_FLAGS, *_tuned(), "-shared", "-fPIC"]
    name = hashlib.sha256("\0".join([source, *command, _processor()]).encode()).hexdigest()[:24]
    return _load(_built(source, command, f"rows-{name}.so"))


def _tuned() -> list[str]:
    """For this very processor; vectors as wide as they come, which gcc does not take by itself."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ["-march=native", "-mprefer-vector-width=512"]
    return ["-mcpu=native"]


@functools.cache
def _processor() -> str:
    """What a library is good for: a home directory may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return " ".join([platform.system(), platform.machine(), platform.processor(), *told])


def _built(source: str, command: list[str], name: str) -> Path:
    """The library in the cache, built there if it is not; in a directory of this process where that cannot be."""
    folder = cache_directory() / "native"
    if (folder / name).is_file():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder))
    except OSError:
        folder = draft = Path(tempfile.mkdtemp(prefix="abkd-"))
    try:
        (draft / "rows.c").write_text(source, encoding="utf-8")
        done = subprocess.run([*command, "-o", str(draft / name), str(draft / "rows.c"), "-lm"], capture_output=True)
        if done.returncode:
            told = done.stderr.decode(errors="replace").splitlines()
            first = next((line for line in told if "error" in line), f"exit code {done.returncode}")
            raise BuildError(f"{command[0]} failed: {first}")
        return (draft / name).replace(folder / name)  # whole or not at all, also with others at it
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error}") from error
    finally:
        if draft != folder:
            shutil.rmtree(draft, ignore_errors=True)


def _load(path: Path) -> Callable[..., int]:
    try:
        function = ctypes.CDLL(str(path)).abkd_rows
    except (OSError, AttributeError) as error:
        raise BuildError(f"cannot load {path}: {error}") from error
    function.restype = ctypes.c_int
    return function
