"""TAID: a target that slides from the student's own distribution to the teacher's (arXiv 2501.16937, ICLR 2025).

``D(p_t‖q)`` with ``p_t = softmax((1-t)·z_q + t·z_p)``, where ``z_q`` is a constant (eq. 3), and ``t`` rises with the
progress of the run, faster while the loss falls (algorithm 1).

    divergence: Interpolated(ForwardKL(), t=TAID(start=0.4))

Published: Llama-2-7B to TinyLlama, MT-Bench 3.99 (forward KL) to 4.27. Not reproduced here. The released code uses the
loss of a micro-batch in one process; here it is that of the whole optimizer step over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from abkd.divergences import Divergence, ForwardKL, Transform, check_inner
from abkd.errors import ConfigError
from abkd.schedules import Control, Controller, Schedule, at, is_number, values_of
from abkd.stateful import Event, StepEnd

_FORWARD_KL = ForwardKL()


@dataclass(frozen=True)
class TAID(Controller):
    """TAID's t: from ``start`` to ``end``, at least linearly in the progress of the run, faster while the loss falls.

    After each step, with the relative decrease ``δ = (loss_before - loss) / loss_before``:
    ``m ← momentum·m + (1 - momentum)·δ`` and ``t ← min(end, max(linear, t + rate·sigmoid(m)·(1 - t)))``.

    Args:
        start: the first t; the paper takes 0.4, and 0.2 for small students.
        end: the last t.
        rate: α in the paper.
        momentum: β in the paper.

    Raises:
        ConfigError: an argument outside [0, 1], or ``end`` below ``start``.
    """

    start: float = 0.4
    end: float = 1.0
    rate: float = 5e-4
    momentum: float = 0.99

    def __post_init__(self) -> None:
        for name in ("start", "end", "rate", "momentum"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise ConfigError(f"TAID: {name} must be a number from 0 to 1, got {value!r}")
        if self.end < self.start:
            raise ConfigError(f"TAID: end must be at least start, got {self.end!r} and {self.start!r}")

    def values(self) -> list[float]:
        return [self.start, self.end]

    def open(self) -> Control:
        return _Slide(self)


class _Slide(Control):
    needs_step_metrics = True

    def __init__(self, spec: TAID) -> None:
        self.spec, self.value, self.mean, self.before = spec, spec.start, 0.0, math.nan

    def observe(self, event: Event) -> None:
        if not isinstance(event, StepEnd):
            return
        spec, loss = self.spec, event.metrics["loss"]
        if not math.isnan(self.before):
            decrease = (self.before - loss) / self.before if self.before else 0.0
            self.mean = spec.momentum * self.mean + (1 - spec.momentum) * decrease
            step = spec.rate * (1 - self.value) / (1 + math.exp(min(-self.mean, 700.0)))
            linear = spec.start + (spec.end - spec.start) * event.progress
            self.value = min(spec.end, max(linear, self.value + step))
        self.before = loss

    def state_dict(self) -> dict[str, float | None]:
        return {"t": self.value, "mean": self.mean, "loss": None if math.isnan(self.before) else self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.mean = state["t"], state["mean"]
        self.before = math.nan if state["loss"] is None else state["loss"]

    def logs(self) -> dict[str, float]:
        return {"taid_t": self.value}


@dataclass(frozen=True)
class Interpolated(Transform):
    """``D(p_t‖q)`` with ``p_t ∝ q^(1-t)·p^t``, the student's part a constant: a target between student and teacher.

    ``t=1`` is the divergence itself, and at ``t=0`` the gradient is 0.

    Args:
        t: from 0 to 1; a number, a schedule or a controller such as :class:`TAID`.

    Raises:
        ConfigError: ``t`` outside [0, 1], or ``divergence`` is not a divergence.
    """

    divergence: Divergence = _FORWARD_KL
    t: float | Schedule = 0.5
    exempt: ClassVar[dict[str, str]] = {
        "one_hot_rows": "a class that is impossible for the student is impossible in the target, too",
        **dict.fromkeys(
            (
                "gradient_is_the_central_difference",
                "gradient_is_smooth_where_equal",
                "gradient_passes_gradcheck",
                "teacher_gradient_passes_gradcheck",
            ),
            "the student's part of the target is a constant, which difference quotients do not know",
        ),
    }

    def __post_init__(self) -> None:
        check_inner(self)
        if not all(is_number(value) and 0 <= value <= 1 for value in values_of(self.t)):
            raise ConfigError(f"Interpolated: t must be a number from 0 to 1 or a schedule of such, got {self.t!r}")

    def written(self) -> str:
        t = repr(self.t) if isinstance(self.t, Schedule) else f"{self.t:g}"
        return f"[{self.divergence.written()} with p ∝ q^(1-t)·p^t, t = {t}]"

    def exact(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None) -> Tensor:
        target = _between(log_p, log_q.detach(), at(self.t, 0.0))
        return self.divergence.rows(target, log_q, targets)

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return cls(), cls(t=0.9)


def _between(log_p: Tensor, log_q: Tensor, t: float) -> Tensor:
    """``log p_t``: exactly q where both are equal, and p where no class is possible for both."""
    if t in (0.0, 1.0):
        return log_p if t else log_q
    both = (1 - t) * log_q + t * log_p
    none = (both == -torch.inf).all(-1, keepdim=True)
    equal = (log_p == log_q).all(-1, keepdim=True)  # normalising again would round
    return torch.where(equal, log_q, torch.log_softmax(torch.where(none, log_p, both), -1))
