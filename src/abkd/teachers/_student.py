"""Teachers derived from the student: its moving average, a snapshot, or the base model under its adapters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.errors import ConfigError, OutputDirError
from abkd.models.rows import ModelRows, Outputs
from abkd.ops import Rows
from abkd.schedules import is_number
from abkd.stateful import Event, StepEnd
from abkd.teachers._live import LiveReader
from abkd.teachers._types import Teacher, TeacherContext, TeacherReader


class CopyReader(LiveReader):
    """A copy of the student that follows it, equal to it at the start.

    Only trained weights are copied; frozen weights are shared. Tensors are looked up by name, since other code may
    replace the student's tensors.
    """

    def __init__(self, spec: Teacher, student: ModelRows) -> None:
        self.spec, self.student = spec, student.model
        _check_whole(spec, self.student)
        super().__init__(student.of(_copied(student)))
        self.trained = [name for name, parameter in self.student.named_parameters() if parameter.requires_grad]
        saved = self.student.state_dict()
        self.buffers = [name for name, _ in self.student.named_buffers() if name in saved]

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that change, each once, even if it has several names."""
        return {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self.held().items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Raises OutputDirError if it is from another student."""
        held = self.held()
        if {name: tensor.shape for name, tensor in held.items()} != {name: state[name].shape for name in state}:
            raise OutputDirError(
                f"the checkpoint's state of {self.spec!r} does not match this student: resume with the recipe that the "
                "run was started with, or start over in another output_dir"
            )
        for name, tensor in held.items():
            tensor.copy_(state[name])

    def held(self) -> dict[str, Tensor]:
        """The tensors that change, by name: trained parameters, and the buffers in a checkpoint of the student."""
        return _named(self.model, [*self.trained, *self.buffers])

    def followed(self) -> dict[str, Tensor]:
        """The student's current tensors of the same names."""
        _check_whole(self.spec, self.student)
        return _named(self.student, [*self.trained, *self.buffers])


class SnapshotReader(CopyReader):
    """The student as it was at the last multiple of ``every`` steps."""

    def __init__(self, spec: Snapshot, student: ModelRows) -> None:
        super().__init__(spec, student)
        self.every = spec.every

    @torch.no_grad()
    def observe(self, event: Event) -> None:
        if not isinstance(event, StepEnd):
            return
        student = self.followed()
        if event.step % self.every == 0:
            for name, tensor in self.held().items():
                tensor.copy_(student[name])


class EMAReader(CopyReader):
    """The exponential moving average of the student's weights.

    For a student in 16 bits, the average is also kept in float32: a step of 1 - decay would be lost to rounding.
    """

    def __init__(self, spec: EMA, student: ModelRows) -> None:
        super().__init__(spec, student)
        self.decay = spec.decay
        weights = _named(self.model, self.trained)
        self.fine = {name: weight.float() for name, weight in weights.items() if weight.dtype.itemsize < 4}

    def held(self) -> dict[str, Tensor]:
        held = super().held()
        self.fine = {name: mean.to(held[name].device) for name, mean in self.fine.items()}
        return {**held, **self.fine}

    @torch.no_grad()
    def observe(self, event: Event) -> None:
        if not isinstance(event, StepEnd):
            return
        student, held = self.followed(), self.held()
        for name in self.trained:
            held[name].lerp_(student[name].to(held[name]), 1 - self.decay)
        for name in self.buffers:
            held[name].copy_(student[name])
        self._round()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for name, weight in _named(self.model, self.fine).items():
            weight.copy_(self.fine[name])


class AdapterOffReader(TeacherReader):
    """The student's base model: while the teacher runs, the adapters are disabled and the model is in eval mode."""

    def __init__(self, spec: Teacher, student: ModelRows) -> None:
        self.spec, self.student = spec, student.model
        self.rows = student.of(self.student.get_base_model())
        self.head_rows = self.rows.head_rows
        self._check_frozen()

    def __call__(self, view: View) -> Rows:
        """The base model's rows for ``view``."""
        return self.read(view).rows

    @torch.no_grad()
    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Rows]:
        _check_whole(self.spec, self.student)
        with _without_adapters(self.student):
            return self.rows.read(view, features, stop=stop).first(self.classes)

    def feature_shapes(self, features: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return self.rows.feature_shapes(features)

    def check(self) -> None:
        with _without_adapters(self.student):
            self.rows.check()

    def observe(self, event: Event) -> None:
        _check_whole(self.spec, self.student)

    def _check_frozen(self) -> None:
        """Raise ConfigError if base weights are trained: those that need gradients with and without the adapters."""
        trained = [(name, parameter) for name, parameter in self.student.named_parameters() if parameter.requires_grad]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT warns about trained biases, which raise below
            with _without_adapters(self.student):
                names = [name for name, parameter in trained if parameter.requires_grad]
        if names:
            raise ConfigError(
                f"{self.spec!r} needs a frozen base model, but {names[0]} is trained in addition to the adapters: "
                'freeze it (bias="none" trains only the adapters), or use teacher: Snapshot()'
            )


@dataclass(frozen=True)
class EMA(Teacher):
    """The student's moving average: after each optimizer step θ ← decay·θ + (1 - decay)·student, in float32.

    It starts as the student itself. Weights that are not trained (with adapters: the base model) are shared.

    Args:
        decay: from 0 (the student after its last step) to 1 (the initial student).

    Raises:
        ConfigError: an invalid decay; at ``open``, a sharded student.
    """

    decay: float = 0.999
    needs: ClassVar[tuple[int, int | None]] = (0, 0)
    features: ClassVar[frozenset[str] | None] = None

    def __post_init__(self) -> None:
        if not (is_number(self.decay) and 0 <= self.decay <= 1):
            raise ConfigError(f"decay must be a number from 0 to 1, such as 0.999, got {self.decay!r}")

    def open(self, context: TeacherContext) -> EMAReader:
        return EMAReader(self, context.student)


@dataclass(frozen=True)
class Snapshot(Teacher):
    """The student as it was after the last multiple of ``every`` optimizer steps; before that, the initial student.

    Raises:
        ConfigError: an invalid number of steps; at ``open``, a sharded student.
    """

    every: int = 100
    needs: ClassVar[tuple[int, int | None]] = (0, 0)
    features: ClassVar[frozenset[str] | None] = None

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise ConfigError(f"every must be a number of steps, an integer >= 1, got {self.every!r}")

    def open(self, context: TeacherContext) -> SnapshotReader:
        return SnapshotReader(self, context.student)


@dataclass(frozen=True)
class AdapterOff(Teacher):
    """The base model under the student's adapters: a teacher that takes no additional memory.

    Raises:
        ConfigError: at ``open``, a student without adapters, one that trains other weights too, or a sharded one.
    """

    needs: ClassVar[tuple[int, int | None]] = (0, 0)
    features: ClassVar[frozenset[str] | None] = None

    def open(self, context: TeacherContext) -> AdapterOffReader:
        model = context.student.model
        if not hasattr(model, "disable_adapter"):
            raise ConfigError(
                f"{self!r} is the student without its adapters, but this student has none: set use_peft: true, or use "
                "teacher: Snapshot() or EMA()"
            )
        _check_whole(self, model)
        return AdapterOffReader(self, context.student)


def _copied(student: ModelRows) -> nn.Module:
    """A copy of the student's model that shares the weights that are not trained.

    Its forward is the unwrapped one: a wrapper may keep a reference to the original model.
    """
    memo: dict[int, object] = {
        id(parameter): parameter for parameter in student.model.parameters() if not parameter.requires_grad
    }
    model = copy.deepcopy(student.model, memo)
    model.forward = copy.deepcopy(student.forward, memo)
    return model


def _named(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensors[name] for name in names}


def _check_whole(spec: Teacher, student: nn.Module) -> None:
    """Raise ConfigError if this process holds only a shard of each weight."""
    if any(hasattr(weight, "full_tensor") or hasattr(weight, "ds_id") for weight in student.parameters()):
        raise ConfigError(
            f"{spec!r} needs the student's full weights, but each process holds only a shard of them (FSDP, ZeRO-3): "
            "train with DDP or ZeRO-2, or set teacher_model_name_or_path and use teacher: Live()"
        )


@contextmanager
def _without_adapters(model: Any) -> Iterator[None]:
    """The base model in eval mode; on exit every module and parameter is restored to its previous mode.

    PEFT freezes the adapters meanwhile, and on exit unfreezes even those that were frozen before.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
