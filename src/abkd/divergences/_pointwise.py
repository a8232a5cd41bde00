"""What every divergence is, and the machinery for those that are a sum over classes.

Legend of the whole library: ``p`` teacher, ``q`` student, always in that order; ``N`` rows, ``V`` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from abkd.errors import ConfigError

# A number that takes part in the arithmetic: a Python float, or a 0-d tensor so that a compiled function
# can be given other numbers without being compiled again.
Number = float | Tensor

_BLOCK = 1 << 16  # classes handled at once in eager mode: the temporaries of one block stay in the cache


class Divergence(ABC):
    """A distance between a teacher row ``p`` and a student row ``q``, given as log-probabilities.

    A frozen value: ``divergence(log_p, log_q)`` maps ``[..., V], [..., V] -> [...]``, teacher first. It is 0 where the
    rows are equal and positive elsewhere. To call it with logits use :func:`abkd.divergence_loss`.

    To add one: subclass, write :meth:`rows` with ordinary torch operations (or subclass ``Pointwise`` when it is a
    sum over classes and you know its slope), and export it. The laws in ``tests/laws`` then apply by themselves;
    a law that the divergence truly does not obey is named in ``exempt`` with the reason.
    """

    formula: ClassVar[str] = "D(p‖q)"
    exempt: ClassVar[dict[str, str]] = {}

    @property
    def needs_float64(self) -> bool:
        """True when it has to be worked out in float64."""
        return False

    @property
    def needs_full_distribution(self) -> bool:
        """True when it needs complete distributions: the likeliest classes and one bucket for the rest do not do."""
        return False

    @property
    def needs_targets(self) -> bool:
        """True when it is about the label too, so that data without labels cannot be used."""
        return False

    @property
    def batch_axis(self) -> bool:
        """True when rows are compared with each other, so that the loss depends on which rows share a batch."""
        return False

    def written(self) -> str:
        """It with its numbers, as the formula of an objective shows it."""
        return repr(self)

    @abstractmethod
    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        """``[..., V], [..., V] -> [...]``, differentiable in ``log_q`` (and in ``log_p``).

        Where rows are compared with each other (``batch_axis``), the loss is the mean of what is returned.
        """

    def __call__(
        self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None, *, teacher_grad: bool = False
    ) -> Tensor:
        """The divergence of each row.

        Args:
            log_p: teacher log-probabilities ``[..., V]`` (``-inf`` for an impossible class).
            log_q: student log-probabilities ``[..., V]``.
            targets: class indices ``[...]``, only for divergences that use the label.
            teacher_grad: let the gradient flow into ``log_p`` too; otherwise the teacher is a constant.

        Returns:
            ``[...]`` in float32 (float64 for float64 input); ``+inf`` where the true value is infinite, never NaN for
            log-probabilities that contain none.

        Raises:
            ConfigError: the divergence is about the label, and there are no ``targets``.
        """
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"teacher and student rows must have one shape: log_p has {tuple(log_p.shape)}, "
                f"log_q has {tuple(log_q.shape)}; cut both to the classes they share"
            )
        check_targets(self, targets)
        return self.rows(log_p if teacher_grad else log_p.detach(), log_q, targets)

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        """Instances on which the laws are checked."""
        return (cls(),)


class Pointwise(Divergence):
    """A divergence ``D = Σ_v term(log p_v, log q_v)`` with a known slope ``g = ∂term/∂log q_v``.

    The gradient with respect to student logits ``z`` at temperature ``T`` is then ``(g - q·Σg) / T``
    (``reference``: ABKD, arXiv 2505.04560, eq. 128/132, in the unified form that has no case for β = 0).
    """

    @property
    def params(self) -> tuple[float, ...]:
        """The parameters as numbers, so that one compiled function serves every value of them."""
        return ()

    @property
    def kind(self) -> tuple[Any, ...]:
        """What must be equal for two divergences to share a compiled function."""
        return (type(self),)

    @property
    def native(self) -> str | None:
        """:meth:`value_and_slope` in C, for ``ops/rows.c``: sets ``term`` and ``slope`` from ``p``, ``q``, ``k[0]``, ….

        ``p`` and ``q`` are the logarithms, ``k`` the ``params``. None: torch does the work, unfused on a CPU.
        """
        return None

    @abstractmethod
    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        """``[..., V], [..., V] -> (term, slope)``, both ``[..., V]``; from ``params`` and ``kind``."""

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``∂term/∂log p_v`` ``[..., V]``; needed only where the teacher learns too (``teacher_grad=True``)."""
        raise NotImplementedError(f"{type(self).__name__} has no teacher gradient")

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return _SumOfTerms.apply(log_p, log_q, self)


def check_targets(divergence: Divergence, targets: Tensor | None) -> None:
    """Raise ConfigError where a divergence is about labels that are not there."""
    if divergence.needs_targets and targets is None:
        raise ConfigError(
            f"{divergence!r} is about the label of each row, but there are none: pass targets, or, for data without "
            "labels, take a divergence that does without, such as ForwardKL() or AlphaBeta(0.8, 0.3)"
        )


def working_dtype(divergence: Divergence, *tensors: Tensor) -> torch.dtype:
    """float64 where the input is or the divergence needs it, float32 otherwise (also for bf16 and fp16)."""
    return (
        torch.float64 if divergence.needs_float64 or any(t.dtype == torch.float64 for t in tensors) else torch.float32
    )


def _blocks(rows: int, classes: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, classes))
    return (slice(start, start + step) for start in range(0, rows, step))


class _SumOfTerms(torch.autograd.Function):
    """Row sums with the closed-form slope kept for the backward pass; block by block, so temporaries stay small."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, divergence: Pointwise) -> Tensor:
        classes = log_q.shape[-1]
        dtype = working_dtype(divergence, log_p, log_q)
        flat_p, flat_q = log_p.reshape(-1, classes), log_q.reshape(-1, classes)
        out_dtype = torch.promote_types(torch.promote_types(log_p.dtype, log_q.dtype), torch.float32)
        value = flat_q.new_empty(len(flat_q), dtype=out_dtype)
        for_student = torch.empty_like(flat_q) if ctx.needs_input_grad[1] else None
        for_teacher = torch.empty_like(flat_p) if ctx.needs_input_grad[0] else None
        for block in _blocks(*flat_q.shape):
            p, q = flat_p[block].to(dtype), flat_q[block].to(dtype)
            term, slope = divergence.value_and_slope(p, q, divergence.params)
            value[block] = term.sum(-1)
            if for_student is not None:
                for_student[block] = slope
            if for_teacher is not None:
                for_teacher[block] = divergence.teacher_slope(p, q)
        ctx.save_for_backward(for_teacher, for_student)
        ctx.shape = log_q.shape
        return value.reshape(log_q.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        (grad,) = grads
        for_teacher, for_student = ctx.saved_tensors
        weight = grad.reshape(-1, 1)

        def scaled(slope: Tensor | None) -> Tensor | None:
            return None if slope is None else (slope * weight.to(slope.dtype)).reshape(ctx.shape)

        return scaled(for_teacher), scaled(for_student), None
