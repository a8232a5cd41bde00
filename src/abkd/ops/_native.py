"""``rows.c`` and ``passes.c``, compiled once per machine with its C compiler and cached."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from abkd.divergences import Pointwise
from abkd.paths import cache_directory

_HERE = Path(__file__).parent
_FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp-simd", "-w"]
_BITS = {torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}
_OUTPUTS = 5  # per row: see abkd_rows
_PIECES = 4  # per thread, so that the others do not wait long for the last one

RowFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, bool], Tensor]
_Function = Callable[..., int]


class BuildError(Exception):
    """The C code cannot be compiled or loaded; the message is one line."""


def find_compiler() -> str | None:
    """The first of ``$CC``, ``cc``, ``gcc`` and ``clang`` that is installed, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "cc", "gcc", "clang"))), None)


def knows(*logits: Tensor) -> bool:
    """Whether the C code supports the device and dtype of these logits."""
    return all(each.device.type == "cpu" and each.dtype in _BITS for each in logits)


def serves(divergence: object, *logits: Tensor) -> bool:
    """Whether ``rows.c`` supports this divergence on these logits."""
    return isinstance(divergence, Pointwise) and divergence.native is not None and knows(*logits)


def row_function(divergence: Pointwise, student: torch.dtype, teacher: torch.dtype) -> RowFunction:
    """``f(z, y, weight, targets, coefficients, params, grad) -> [n, 5]``: D, CE, H(q), H(p), agreement, in float64.

    ``z`` and ``y`` are logits ``[n, V]``; with ``grad`` ``z`` is overwritten by the gradient of
    ``Σ weight·(ce·CE + kd·D)``. ``coefficients``: 1/temperature, ce, kd, ``[1, 3]``, or ``[n, 3]`` with separate ones
    per row; ``params``: the divergence's, ``[1, K]`` or ``[n, K]``. All float64.

    Raises:
        BuildError: the compiler failed.
    """
    wide = divergence.needs_float64 or torch.float64 in (student, teacher)
    assert divergence.native is not None
    return functools.partial(
        _call, _library(divergence.native, len(divergence.params), wide, _BITS[student], _BITS[teacher])
    )


def _call(
    function: _Function,
    z: Tensor,
    y: Tensor,
    weight: Tensor,
    targets: Tensor | None,
    coefficients: Tensor,
    params: Tensor,
    grad: bool,
) -> Tensor:
    rows, classes = z.shape
    y, weight = y.contiguous(), weight.to(torch.float64).contiguous()
    coefficients, params = coefficients.contiguous(), params.contiguous()
    assert z.is_contiguous()
    out = torch.empty(rows, _OUTPUTS, dtype=torch.float64)
    targets = None if targets is None else targets.to(torch.int64).contiguous()

    def run(at: _At, count: int) -> int:
        known = at(weight), at(targets), *_strided(coefficients, at, rows), *_strided(params, at, rows)
        return function(at(z), at(y), ctypes.c_int64(count), ctypes.c_int64(classes), *known, at(out), int(grad))

    if _over_rows(run, rows):
        raise MemoryError(f"no memory for one row of {classes} classes")
    return out


@dataclass(frozen=True)
class Passes:
    """The two functions of ``passes.c``, for logits of one dtype."""

    library: tuple[_Function, _Function]

    def tail_logsumexp(self, z: Tensor, inv_temperature: float | Tensor, plain: bool) -> Tensor:
        """``[n, 4]`` in float64: the largest logit, log Σ e^((z - top)/T), the same for T = 1, the entropy.

        ``inv_temperature``: 1/T, one number or one per row, ``[n]``.
        """
        out, cold = torch.empty(len(z), 4, dtype=torch.float64), _column(inv_temperature)
        assert z.is_contiguous()

        def run(at: _At, count: int) -> int:
            size = ctypes.c_int64(count), ctypes.c_int64(z.shape[-1])
            return self.library[0](at(z), *size, *_strided(cold, at, len(z)), int(plain), at(out))

        _over_rows(run, len(z))
        return out

    def tail_gradient(
        self, z: Tensor, known: Tensor, inv_temperature: float | Tensor, kd_scale: Tensor, ce_scale: Tensor | None
    ) -> None:
        """Overwrite ``z`` ``[n, V]`` with ``kd_scale·t + ce_scale·u``, given what ``tail_logsumexp`` returned."""
        known, kd_scale = known.to(torch.float64).contiguous(), kd_scale.to(torch.float64).contiguous()
        ce_scale = None if ce_scale is None else ce_scale.to(torch.float64).contiguous()
        cold = _column(inv_temperature)
        assert z.is_contiguous()

        def run(at: _At, count: int) -> int:
            size = ctypes.c_int64(count), ctypes.c_int64(z.shape[-1])
            scales = at(kd_scale), at(ce_scale)
            return self.library[1](at(z), *size, *_strided(cold, at, len(z)), at(known), *scales)

        _over_rows(run, len(z))


def passes(dtype: torch.dtype) -> Passes:
    """The functions of ``passes.c`` for logits of this dtype.

    Raises:
        BuildError: the compiler failed.
    """
    return _pass_library(_BITS[dtype])


_At = Callable[[Tensor | None], ctypes.c_void_p | None]


def _pointer(tensor: Tensor | None, row: int = 0) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor[row:].data_ptr())


def _column(numbers: float | Tensor) -> Tensor:
    """One number ``[1, 1]``, or one per row ``[n, 1]``, in float64."""
    return torch.as_tensor(numbers, dtype=torch.float64).reshape(-1, 1).contiguous()


def _strided(table: Tensor, at: _At, rows: int) -> tuple[ctypes.c_void_p | None, ctypes.c_int64]:
    """A table ``[1, K]`` or ``[rows, K]`` in C: its address, and how far apart the numbers of two rows are."""
    stride = table.shape[-1] if len(table) == rows else 0
    return at(table) if stride else _pointer(table), ctypes.c_int64(stride)


def _over_rows(run: Callable[[_At, int], int], rows: int) -> int:
    """``run(at, count)`` for all rows on as many threads as torch has; ``at`` gives the address of a tensor's part."""

    def piece(start: int, stop: int) -> int:
        return run(functools.partial(_pointer, row=start), stop - start)

    threads = min(torch.get_num_threads(), rows)
    if threads < 2:
        return piece(0, rows)
    step = -(-rows // (threads * _PIECES))
    starts = range(0, rows, step)
    with ThreadPoolExecutor(threads) as pool:  # ctypes releases the GIL
        return max(pool.map(piece, starts, (min(start + step, rows) for start in starts)))


@functools.cache
def _library(native: str, params: int, wide: bool, student_bits: int, teacher_bits: int) -> _Function:
    known = {"WIDE": int(wide), "STUDENT_BITS": student_bits, "TEACHER_BITS": teacher_bits, "PARAMS": params}
    source = (_HERE / "rows.c").read_text(encoding="utf-8").replace("\n    VALUE_AND_SLOPE\n", f"\n{native}\n")
    (function,) = _loaded(source, known, "abkd_rows")
    return function


@functools.cache
def _pass_library(bits: int) -> Passes:
    source = (_HERE / "passes.c").read_text(encoding="utf-8")
    tail_logsumexp, tail_gradient = _loaded(
        source, {"WIDE": int(bits == 64), "STUDENT_BITS": bits}, "abkd_tail_logsumexp", "abkd_tail_gradient"
    )
    return Passes((tail_logsumexp, tail_gradient))


def _loaded(source: str, known: dict[str, int], *functions: str) -> list[_Function]:
    """Functions compiled from C code, with these macros and ``arithmetic.h`` prepended."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C compiler was found")
    head = "".join(f"#define {name} {value}\n" for name, value in known.items())
    source = head + (_HERE / "arithmetic.h").read_text(encoding="utf-8") + source
    command = [compiler, *_FLAGS, *_tuned(), "-shared", "-fPIC"]
    name = hashlib.sha256("\0".join([source, *command, _processor()]).encode()).hexdigest()[:24]
    return _load(_built(source, command, f"rows-{name}.so"), functions)


def _tuned() -> list[str]:
    """Flags for this processor, with its widest vectors, which gcc does not use by default."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ["-march=native", "-mprefer-vector-width=512"]
    return ["-mcpu=native"]


@functools.cache
def _processor() -> str:
    """The processor that a library is built for: machines of different kinds may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return " ".join([platform.system(), platform.machine(), platform.processor(), *flags])


def _built(source: str, command: list[str], name: str) -> Path:
    """The library in the cache, built there if missing; in a temporary directory if the cache is not writable."""
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
            lines = done.stderr.decode(errors="replace").splitlines()
            first = next((line for line in lines if "error" in line), f"exit code {done.returncode}")
            raise BuildError(f"{command[0]} failed: {first}")
        return (draft / name).replace(folder / name)  # atomic, also if other processes build it at the same time
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error}") from error
    finally:
        if draft != folder:
            shutil.rmtree(draft, ignore_errors=True)


def _load(path: Path, names: Sequence[str]) -> list[_Function]:
    try:
        library = ctypes.CDLL(str(path))
        functions = [getattr(library, name) for name in names]
    except (OSError, AttributeError) as error:
        raise BuildError(f"cannot load {path}: {error}") from error
    for function in functions:
        function.restype = ctypes.c_int
    return functions
