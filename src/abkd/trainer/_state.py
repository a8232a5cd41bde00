"""The stateful components of a run: notified of events, and saved in and restored from checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd.errors import OutputDirError
from abkd.stateful import Evaluated, Event, Stateful, StepEnd
from abkd.storage import atomic_write
from abkd.trainer._context import RunContext
from abkd.trainer._finite import check_tensors
from abkd.trainer._sources import SequenceSampler
from abkd.trainer._sums import MetricSums


class _Part(NamedTuple):
    """A component and the name of its files; ``own``: each process has a state of its own."""

    name: str
    component: Stateful
    own: bool = False


class Components(TrainerCallback):
    """All stateful components of a run.

    Args:
        sampler: returns the run's sampler, which is created when training starts.
        sums: the metrics of the current step.
        restart: called when training starts at step 0, also when auto_find_batch_size starts over.
    """

    def __init__(
        self,
        run: RunContext,
        sampler: Callable[[], SequenceSampler | None],
        sums: MetricSums,
        restart: Callable[[], None],
    ) -> None:
        self.run, self.sampler, self.sums, self.restart = run, sampler, sums, restart

    def parts(self) -> Iterator[_Part]:
        """The components, each with the name of its files."""
        sampler, teacher = self.sampler(), self.run.task.models.teacher
        if sampler is not None:
            processes = self.run.processes
            yield _Part(f"source-{processes.index}-of-{processes.count}", sampler.stream, own=True)
        if teacher is not None:
            yield _Part("teacher", teacher)
        yield _Part("objective", self.run.loss.objective)

    @property
    def needs_step_metrics(self) -> bool:
        """Whether some component needs the metrics of each step."""
        return any(part.component.needs_step_metrics for part in self.parts())

    def notify(self, event: Event) -> None:
        """Pass an event to all components."""
        for part in self.parts():
            part.component.observe(event)

    def logs(self) -> dict[str, float]:
        """The components' metrics since the last call."""
        sampler, teacher = self.sampler(), self.run.task.models.teacher
        found: dict[str, float] = {}
        for part in (sampler, teacher, self.run.loss.objective):
            found |= {} if part is None else part.logs()
        return found

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, checkpoint: Path) -> None:
        """Save the state of each component; called in all processes."""
        for name, component, own in self.parts():
            state = {key: _whole(value) for key, value in component.state_dict().items()}
            tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            values = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            check_tensors(tensors.items(), f"the {name}'s state")
            if (values or own) and (own or self.run.args.should_save):
                atomic_write(_file(checkpoint, name, "json"), json.dumps(values).encode())
            if tensors and self.run.args.should_save:
                save_file(tensors, _file(checkpoint, name, "safetensors"))

    def load(self, checkpoint: Path) -> None:
        """Load the state of each component from a checkpoint.

        Raises:
            OutputDirError: the checkpoint is from other components or another number of processes, or is sharded and
                this run is not (or the other way round).
        """
        _check_form(self.run, checkpoint)
        for name, component, own in self.parts():
            values, tensors = _file(checkpoint, name, "json"), _file(checkpoint, name, "safetensors")
            if own and not values.is_file():
                raise OutputDirError(
                    f"cannot resume from {checkpoint}: {values.name} is missing, so it was saved with another source "
                    "or number of processes; resume with those, or start over in another output_dir"
                )
            state: dict[str, Any] = load_file(tensors) if tensors.is_file() else {}
            state |= json.loads(values.read_text(encoding="utf-8")) if values.is_file() else {}
            if name == "objective" and state.keys() != component.state_dict().keys():
                raise OutputDirError(
                    f"cannot resume from {checkpoint}: it was saved with another objective, whose terms have another "
                    "state; resume with the recipe that the run was started with, or start over in another output_dir"
                )
            component.load_state_dict(state)

    # -- events --------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.global_step == 0:
            self.restart()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        metrics = self.sums.of_step(self.run.processes) if self.needs_step_metrics else {}
        self.notify(StepEnd(state.global_step, self.run.progress, metrics))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        self.notify(Evaluated(state.global_step, metrics or {}))


def _file(checkpoint: Path, name: str, kind: str) -> Path:
    return checkpoint / f"abkd_{name}.{kind}"


def _whole(value: object) -> object:
    """A tensor on the CPU, gathered if it is sharded, in which all processes must take part; other values as is."""
    if not isinstance(value, Tensor):
        return value
    whole: Any = value
    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
    return whole.detach().cpu().contiguous()


def _check_form(run: RunContext, checkpoint: Path) -> None:
    """Reject a checkpoint whose optimizer state this run cannot load: transformers would fail or reset it."""
    sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    if sharded != run.fsdp():
        forms = ("from one process or replicas (DDP)", "in shards (FSDP)")
        raise OutputDirError(
            f"cannot resume from {checkpoint}: it was saved {forms[sharded]}, but this run is not; launch it as "
            "before, or start over in another output_dir"
        )
