"""The base class of all divergences, and the implementation of those that are a sum over classes.

Notation of the whole library: ``p`` teacher, ``q`` student, always in that order; ``N`` rows, ``V`` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from abkd.errors import ConfigError

# A parameter in the arithmetic: a Python float, or a 0-d tensor so that a compiled function accepts other values
# without recompilation.
Number = float | Tensor

_BLOCK = 1 << 16  # elements per block in eager mode: the temporaries of one block stay in the cache


class Divergence(ABC):
    """A distance between a teacher row ``p`` and a student row ``q``, given as log-probabilities.

    A frozen value: ``divergence(log_p, log_q)`` maps ``[..., V], [..., V] -> [...]``, teacher first. It is 0 where the
    rows are equal and positive elsewhere. To call it with logits use :func:`abkd.divergence_loss`.

    To add one: subclass, implement :meth:`rows` with ordinary torch operations (or subclass ``Pointwise`` if it is a
    sum over classes and you know its slope), and export it. The laws in ``tests/laws`` then apply automatically;
    list a law that does not hold for the divergence in ``exempt``, with the reason.
    """

    exempt: ClassVar[dict[str, str]] = {}

    @property
    def needs_float64(self) -> bool:
        """True when it must be computed in float64."""
        return False

    @property
    def needs_full_distribution(self) -> bool:
        """True when it needs complete distributions: the top-k classes and one bucket for the rest are not enough."""
        return False

    @property
    def needs_targets(self) -> bool:
        """True when it also uses the label, so that it needs labelled data."""
        return False

    @property
    def batch_axis(self) -> bool:
        """True when rows are compared with each other, so that the loss depends on which rows share a batch."""
        return False

    def written(self) -> str:
        """The divergence with its parameters, as the formula of an objective shows it."""
        return repr(self)

    @abstractmethod
    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        """The divergence of each row: ``[..., V], [..., V] -> [...]``, differentiable in ``log_q`` (and in ``log_p``).

        Where rows are compared with each other (``batch_axis``), the loss is the mean of the returned values.
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
            ConfigError: the divergence uses the label, but there are no ``targets``.
        """
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"log_p and log_q must have the same shape, got {tuple(log_p.shape)} and {tuple(log_q.shape)}; "
                "cut both to the classes that they share"
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
    (ABKD, arXiv 2505.04560, eq. 128/132, in a unified form without a special case for β = 0).
    """

    @property
    def params(self) -> tuple[float, ...]:
        """The parameters as run-time numbers, so that one compiled function serves all their values."""
        return ()

    @property
    def kind(self) -> tuple[object, ...]:
        """The key by which divergences share a compiled function."""
        return (type(self),)

    @property
    def native(self) -> str | None:
        """:meth:`value_and_slope` in C, for ``ops/rows.c``: sets ``term`` and ``slope`` from ``p``, ``q``, ``k[0]``, ….

        ``p`` and ``q`` are log-probabilities, ``k`` holds the ``params``. None: computed by torch, unfused on a CPU.
        """
        return None

    @abstractmethod
    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        """``[..., V], [..., V] -> (term, slope)``, both ``[..., V]``; may depend only on ``params`` and ``kind``."""

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``∂term/∂log p_v`` ``[..., V]``; needed only if the teacher is trained, too (``teacher_grad=True``)."""
        raise NotImplementedError(f"{type(self).__name__} has no teacher gradient")

    def rows(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None = None) -> Tensor:
        return _SumOfTerms.apply(log_p, log_q, self)


def check_targets(divergence: Divergence, targets: Tensor | None) -> None:
    """Raise ConfigError if a divergence uses labels and there are none."""
    if divergence.needs_targets and targets is None:
        raise ConfigError(
            f"{divergence!r} needs the label of each row, got none: pass targets, or, for data without labels, use a "
            "divergence that needs none, such as ForwardKL() or AlphaBeta(0.8, 0.3)"
        )


def working_dtype(divergence: Divergence, *tensors: Tensor) -> torch.dtype:
    """float64 if an input is float64 or the divergence needs it, otherwise float32 (also for bf16 and fp16)."""
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
