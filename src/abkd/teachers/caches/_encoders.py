"""Encoders: from a live teacher's rows to the columns that a cache stores."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from abkd.data import View
from abkd.errors import ConfigError, NonFiniteError
from abkd.models.language import CausalRows
from abkd.models.rows import ModelRows
from abkd.ops import Head, Projected
from abkd.storage import atomic_write, disk_errors
from abkd.teachers.caches._likeliest import encode

_CHUNK_BYTES = 128 << 20  # of logits and intermediate results
_BYTES = 24  # per class and row: six float32 at once
_HEAD = "head.safetensors"
_NOT_FINITE = "the teacher's logits are not finite; load it in another dtype, or check its weights"


class Encoder:
    """Turns the rows of a live teacher into stored columns.

    ``details``: properties of the teacher that a reader needs. ``device``: the teacher's device.
    """

    details: dict[str, Any]

    def __init__(self, teacher: ModelRows) -> None:
        self.teacher = teacher
        if isinstance(teacher, CausalRows):
            weight, own = teacher.head.weight, {"hidden_size": teacher.head.weight.shape[-1]}
            dtype: Any = teacher.language_model.dtype
        else:
            weight = _first_weight(teacher.model)
            own, dtype = {"class_names": _class_names(teacher)}, weight.dtype
        self.device = weight.device
        self.details = {"computed_in": str(dtype).removeprefix("torch."), "head_rows": teacher.head_rows, **own}

    def __call__(self, view: View, targets: Tensor) -> dict[str, Tensor]:
        """Columns of the rows of ``view``, on the CPU; a target below 0 is unknown.

        Raises:
            NonFiniteError: the teacher's output is not finite.
        """
        raise NotImplementedError

    def prepare(self, folder: Path) -> dict[str, object]:
        """Store what all rows share; returns the entries for the manifest."""
        return {}


def _first_weight(model: nn.Module) -> Tensor:
    """The tensor that determines device and dtype; a buffer if all weights are quantised."""
    weights = itertools.chain(model.parameters(), model.buffers())
    return next((each for each in weights if each.is_floating_point()), torch.zeros(()))


class TopKEncoder(Encoder):
    """The top k of the first ``classes`` classes."""

    def __init__(self, teacher: ModelRows, classes: int, k: int, temperature: float) -> None:
        super().__init__(teacher)
        teacher.classes = classes
        self.classes, self.k, self.temperature = classes, min(k, classes), temperature
        self.details["classes"] = classes

    def __call__(self, view: View, targets: Tensor) -> dict[str, Tensor]:
        rows, unknown = self.teacher(view), (targets < 0).cpu()
        size, valid = max(1, _CHUNK_BYTES // (_BYTES * self.classes)), targets.clamp(min=0)
        parts = [
            encode(rows.logits(slice(start, start + size)), valid[start : start + size], self.k, self.temperature)
            for start in range(0, len(rows), size)
        ]
        columns = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        if any(columns[name].isnan().any() for name in ("step", "log_tail", "log_target")):
            raise NonFiniteError(_NOT_FINITE)
        columns["log_target"] = columns["log_target"].masked_fill(unknown, torch.nan)
        return columns


class HiddenEncoder(Encoder):
    """The last hidden states, and the head.

    Raises:
        ConfigError: the head is not a plain matrix.
    """

    def __init__(self, teacher: CausalRows, dtype: str | None) -> None:
        if teacher.dense_because is not None:
            raise ConfigError(
                f"HiddenCache needs a teacher whose head is a plain matrix, but {teacher.dense_because}. Use "
                "teacher: TopKCache(k=64), or Live()"
            )
        super().__init__(teacher)
        teacher.classes = None
        self.head, self.dtype = teacher.head, getattr(torch, dtype or self.details["computed_in"])

    def __call__(self, view: View, targets: Tensor) -> dict[str, Tensor]:
        rows = self.teacher(view)
        assert isinstance(rows, Projected)
        hidden = rows.hidden.to(self.dtype).cpu()
        if not hidden.isfinite().all():
            raise NonFiniteError(f"the teacher's hidden states are not finite in {self.dtype}; set another dtype")
        return {"hidden": hidden}

    def prepare(self, folder: Path) -> dict[str, object]:
        head = self.head
        tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        with disk_errors(f"{folder / _HEAD}", "Free disk space and run abkd cache again"):
            atomic_write(folder / _HEAD, data)
        digest = hashlib.sha256(data).hexdigest()
        return {"head": {"sha256": digest, "scale": float(head.scale), "softcap": head.softcap}}


class LogitsEncoder(Encoder):
    """All logits of a classifier."""

    def __init__(self, teacher: ModelRows, dtype: str | None) -> None:
        super().__init__(teacher)
        teacher.classes = None
        self.dtype = getattr(torch, dtype or self.details["computed_in"])

    def __call__(self, view: View, targets: Tensor) -> dict[str, Tensor]:
        logits = self.teacher(view).logits(slice(None)).to(self.dtype).cpu()
        if not logits.isfinite().all():
            raise NonFiniteError(_NOT_FINITE)
        return {"logits": logits}


def _class_names(teacher: Any) -> list[str] | None:
    names = teacher.classifier.class_names
    return None if names is None else list(names)


def read_head(folder: Path, manifest: Mapping[str, Any]) -> Head | None:
    """The head that :class:`HiddenEncoder` stored; None if it is missing or was changed."""
    known, file = manifest["head"], folder / _HEAD
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != known["sha256"]:
        return None
    tensors = load(data)
    return Head(tensors["weight"], tensors.get("bias"), known["scale"], known["softcap"])
