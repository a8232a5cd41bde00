"""The two passes over the student's logits that suffice for a top-k teacher, or for none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from abkd.ops._compilers import fused_by_torch, native
from abkd.ops._eager import one_thread, pieces
from abkd.ops._native import knows, passes
from abkd.ops._row_loss_spec import per_class


class TailSums(NamedTuple):
    """Sums over the possible classes of each row, ``[n]`` each; 0 where there are none, and ``top`` is -inf."""

    top: Tensor
    """The largest logit."""
    log_mass: Tensor
    """``log Σ exp((z - top)/T)``."""
    log_plain: Tensor
    """The same at temperature 1."""
    entropy: Tensor
    """The entropy of the distribution over these classes alone, at temperature T."""


def is_one(inv_temperature: float | Tensor) -> bool:
    """Whether this is temperature 1 for all rows, without looking at those of single rows."""
    return not isinstance(inv_temperature, Tensor) and inv_temperature == 1.0


def tail_logsumexp(logits: Tensor, inv_temperature: float | Tensor, *, plain: bool, compiled: bool) -> TailSums:
    """Sums over the classes of ``[n, V]`` at temperature ``1/inv_temperature``, in float32 (float64 for float64).

    ``inv_temperature`` is one number, or one per row, ``[n]``. Without ``plain`` the mass at temperature 1 is not
    computed.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    plain = plain and not is_one(inv_temperature)
    if compiled and logits.device.type == "cpu":
        library = native(passes, logits.dtype) if knows(logits) else None
        if library is not None:
            return TailSums(*library.tail_logsumexp(logits, inv_temperature, plain).to(wide).unbind(-1))
    if compiled and logits.device.type != "cpu" and len(logits) > 1:
        cold = _tensor(inv_temperature, logits)
        key = ("tail_logsumexp", plain, cold.ndim, logits.dtype, logits.device.type)
        done = fused_by_torch(key, _tail_logsumexp, logits, cold, plain)
        if done is not None:
            return done
    with one_thread(logits):
        parts = [_tail_logsumexp(logits[rows], _of(inv_temperature, rows, wide), plain) for rows in pieces(logits)]
    return TailSums(*(torch.cat(column) for column in zip(*parts, strict=True)))


def tail_gradient(
    logits: Tensor,
    known: TailSums,
    inv_temperature: float | Tensor,
    kd_scale: Tensor,
    ce_scale: Tensor | None,
    *,
    compiled: bool,
) -> None:
    """Overwrite ``[n, V]`` with ``kd_scale·t + ce_scale·u``, where t, u are the rows' distributions at T and at 1."""
    if is_one(inv_temperature) and ce_scale is not None:
        kd_scale, ce_scale = kd_scale + ce_scale, None
    if compiled and logits.device.type == "cpu":
        library = native(passes, logits.dtype) if knows(logits) else None
        if library is not None:
            library.tail_gradient(logits, torch.stack(known, -1), inv_temperature, kd_scale, ce_scale)
            return
    if compiled and logits.device.type != "cpu" and len(logits) > 1:
        cold = _tensor(inv_temperature, logits)
        key = ("tail_gradient", ce_scale is None, cold.ndim, logits.dtype, logits.device.type)
        if fused_by_torch(key, _tail_gradient, logits, known, cold, kd_scale, ce_scale) is not None:
            return
    with one_thread(logits):
        for rows in pieces(logits):
            part = TailSums(*(column[rows] for column in known))
            cold, hard = _of(inv_temperature, rows, part.top.dtype), None if ce_scale is None else ce_scale[rows]
            _tail_gradient(logits[rows], part, cold, kd_scale[rows], hard)


def _tensor(inv_temperature: float | Tensor, logits: Tensor) -> Tensor:
    """As a tensor, ``[]`` or ``[n, 1]``, so that another temperature needs no recompilation."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.as_tensor(per_class(inv_temperature), dtype=dtype, device=logits.device)


def _of(inv_temperature: float | Tensor, rows: slice, dtype: torch.dtype) -> float | Tensor:
    """One number for all rows, or those of some rows, ``[n, 1]``."""
    return inv_temperature[rows, None].to(dtype) if isinstance(inv_temperature, Tensor) else inv_temperature


def finite_top(known: TailSums) -> Tensor:
    """The largest logits ``[n]``, 0 where no class is possible, so that they can be subtracted from any logit."""
    return torch.where(known.top == -torch.inf, 0.0, known.top)


def _tail_logsumexp(logits: Tensor, inv_temperature: float | Tensor, plain: bool) -> TailSums:
    top = logits.amax(-1).to(torch.promote_types(logits.dtype, torch.float32))
    below = logits - torch.where(top == -torch.inf, 0.0, top)[:, None]
    x = below * inv_temperature
    power = x.exp()
    mass = power.sum(-1)
    log_mass = _log(mass)
    mean = (power * x.clamp(min=torch.finfo(x.dtype).min)).sum(-1) / torch.where(mass == 0, 1.0, mass)
    return TailSums(top, log_mass, _log(below.exp().sum(-1)) if plain else log_mass, log_mass - mean)


def _log(mass: Tensor) -> Tensor:
    return torch.where(mass == 0, 1.0, mass).log()


def _tail_gradient(
    logits: Tensor, known: TailSums, inv_temperature: float | Tensor, kd_scale: Tensor, ce_scale: Tensor | None
) -> Tensor:
    below = logits - finite_top(known)[:, None]
    gradient = (below * inv_temperature - known.log_mass[:, None]).exp() * kd_scale[:, None]
    if ce_scale is not None:
        gradient = gradient + (below - known.log_plain[:, None]).exp() * ce_scale[:, None]
    return logits.copy_(gradient)
