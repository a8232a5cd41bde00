"""The definition of a law, the divergences and rows it is tested on, and its helper functions."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

import abkd.divergences
import abkd.terms
from abkd.divergences import Divergence, InFloat64

INF = math.inf
Check = Callable[[Divergence, Tensor, Tensor], None]


@dataclass(frozen=True)
class Law:
    """A statement, and the kinds of row pairs to which it applies."""

    check: Check
    kinds: tuple[str, ...]


LAWS: dict[str, Law] = {}
SMOOTH = ("ordinary", "near")
FINITE = (*SMOOTH, "ties", "sharp", "far", "disjoint")


def law(*kinds: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        LAWS[check.__name__] = Law(check, kinds)
        return check

    return register


def family() -> list[Divergence]:
    """Every example of every concrete divergence that ``abkd.divergences`` or ``abkd.terms`` exports."""
    exported = (getattr(module, name) for module in (abkd.divergences, abkd.terms) for name in module.__all__)
    concrete = (c for c in exported if inspect.isclass(c) and issubclass(c, Divergence) and not inspect.isabstract(c))
    return [example for cls in concrete for example in cls.examples()]


def applicable(divergence: Divergence) -> list[str]:
    return [name for name in LAWS if name not in divergence.exempt]


# ---------------------------------------------------------------------------------------------------------- the rows


def pair(kind: str, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two rows of float64 logits ``[V]``."""
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randn(2, classes, generator=generator, dtype=torch.float64)
    size = 10.0 ** (-6 * torch.rand((), generator=generator, dtype=torch.float64).item())
    match kind:
        case "ordinary":
            return 2 * one, 2 * two
        case "near":
            return 2 * one, 2 * one + size * two
        case "ties":
            return torch.round(one), torch.round(two)
        case "sharp":
            return 30 * one, 30 * two
        case "far":
            return 1e4 * one / one.abs().max(), 1e4 * two / two.abs().max()
        case "disjoint":
            here = torch.arange(classes) % 2 == 0
            return one - 1e4 * here, two - 1e4 * ~here
    raise ValueError(kind)


def rows(kinds: tuple[str, ...]) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    return st.builds(pair, st.sampled_from(kinds), st.sampled_from([2, 3, 10, 40]), st.integers(0, 2**31))


# ----------------------------------------------------------------------------------------------------------- helpers


def log_softmax(z: Tensor) -> Tensor:
    return torch.log_softmax(z, -1)


def at(
    divergence: Divergence, log_p: Tensor, log_q: Tensor, label: Tensor | None = None, *, teacher_grad: bool = False
) -> Tensor:
    """``D(p‖q)``; if it depends on the label, the default label is the teacher's most probable class.

    The laws are about single rows: for divergences that compare the rows of a batch, each is a separate batch.
    """
    if divergence.batch_axis and log_p.shape == log_q.shape and log_q.ndim > 1:
        each = zip(log_p, log_q, strict=True)
        rows = [at(divergence, p, q, teacher_grad=teacher_grad) for p, q in each]
        return torch.stack(rows) if rows else log_q.new_zeros(log_q.shape[:-1])
    if divergence.needs_targets and label is None:
        label = log_p.argmax(-1)
    return divergence(log_p, log_q, label, teacher_grad=teacher_grad)


def value(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> Tensor:
    return at(divergence, log_softmax(z_p), log_softmax(z_q))


def gradient(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> Tensor:
    """With respect to the student's logits."""
    z_q = z_q.detach().clone().requires_grad_()
    return torch.autograd.grad(value(divergence, z_p, z_q).sum(), z_q)[0]


def slope(divergence: Divergence, log_p: Tensor, log_q: Tensor, label: Tensor | None = None) -> Tensor:
    """With respect to the student's log-probabilities."""
    log_q = log_q.detach().clone().requires_grad_()
    return torch.autograd.grad(at(divergence, log_p, log_q, label).sum(), log_q)[0]


def close(got: Tensor, wanted: Tensor, relative: float, noise: float = 0.0) -> bool:
    """Equal up to ``relative`` times the largest entry, or up to ``noise``."""
    size = wanted.abs().max().item() if wanted.numel() else 0.0
    return torch.allclose(got.to(wanted.dtype), wanted, rtol=relative, atol=relative * size + noise)


def noise(divergence: Divergence) -> float:
    """The tolerance of the other sums over a row (such as a second normalisation), if added up in another order."""
    return 1e-12 if divergence.needs_full_distribution or isinstance(divergence, InFloat64) else 0.0


def without(z: Tensor, classes: Tensor) -> Tensor:
    return z.masked_fill(classes, -INF)


def read_back(text: str) -> object:
    if importlib.util.find_spec("abkd.notation") is not None:
        return importlib.import_module("abkd.notation").parse(text)
    names = {name: getattr(abkd.divergences, name) for name in abkd.divergences.__all__}
    return eval(text, {"__builtins__": {}}, names)
