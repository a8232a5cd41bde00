"""State of a run's components: saved in checkpoints, and updated by events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepEnd:
    """An optimizer step is done.

    Attributes:
        step: optimizer steps done.
        progress: the fraction of the run that is done, in [0, 1].
        metrics: ``loss`` and the logged means over the rows of this step, over all processes; empty unless some
            component ``needs_step_metrics``.
    """

    step: int
    progress: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation is done; its metrics have the prefix ``eval_``."""

    step: int
    metrics: Mapping[str, float]


Event = StepEnd | Evaluated


class Stateful:
    """A component opened for one run. Its state is the same in all processes unless it says otherwise.

    ``needs_step_metrics``: whether :class:`StepEnd` must carry metrics, which takes a reduction over all processes.
    """

    needs_step_metrics: bool = False

    def state_dict(self) -> Mapping[str, object]:
        """The state to save in a checkpoint: tensors and JSON values, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""

    def observe(self, event: Event) -> None:
        """React to an event; called in all processes with equal events."""

    def logs(self) -> dict[str, float]:
        """Metrics since the last call, for the log of a run."""
        return {}
