"""The two passes over a student's own logits that suffice where little is known of the teacher, or nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from abkd.ops._compilers import fused_by_torch, native
from abkd.ops._eager import one_thread, pieces
from abkd.ops._native import knows, passes


class Masses(NamedTuple):
    """What the possible classes of a row amount to, ``[n]`` each; 0 where there is none, and ``top`` is -inf."""

    top: Tensor
    """The largest logit."""
    log_mass: Tensor
    """``log Σ exp((z - top)/T)``."""
    log_plain: Tensor
    """The same at temperature 1."""
    entropy: Tensor
    """Of the distribution over these classes alone, at the temperature."""


def masses(logits: Tensor, cold: float, *, plain: bool, compiled: bool) -> Masses:
    """What the classes of ``[n, V]`` amount to at temperature ``1/cold``, in float32 (float64 for float64).

    Without ``plain`` the mass at temperature 1 is not worked out.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    plain = plain and cold != 1.0
    if compiled and logits.device.type == "cpu":
        library = native(passes, logits.dtype) if knows(logits) else None
        if library is not None:
            return Masses(*library.masses(logits, cold, plain).to(wide).unbind(-1))
    if compiled and logits.device.type != "cpu" and len(logits) > 1:
        key = ("masses", plain, logits.dtype, logits.device.type)
        done = fused_by_torch(key, _masses, logits, _number(cold, logits), plain)
        if done is not None:
            return done
    with one_thread(logits):
        parts = [_masses(logits[rows], cold, plain) for rows in pieces(logits)]
    return Masses(*(torch.cat(column) for column in zip(*parts, strict=True)))


def pull(logits: Tensor, known: Masses, cold: float, soft: Tensor, hard: Tensor | None, *, compiled: bool) -> None:
    """Overwrite ``[n, V]`` by ``soft·t + hard·u``, ``[n]`` times the rows' distributions at ``1/cold`` and at 1."""
    if cold == 1.0 and hard is not None:
        soft, hard = soft + hard, None
    if compiled and logits.device.type == "cpu":
        library = native(passes, logits.dtype) if knows(logits) else None
        if library is not None:
            library.pull(logits, torch.stack(known, -1), cold, soft, hard)
            return
    if compiled and logits.device.type != "cpu" and len(logits) > 1:
        key = ("pull", hard is None, logits.dtype, logits.device.type)
        if fused_by_torch(key, _pull, logits, known, _number(cold, logits), soft, hard) is not None:
            return
    with one_thread(logits):
        for rows in pieces(logits):
            part = Masses(*(column[rows] for column in known))
            _pull(logits[rows], part, cold, soft[rows], None if hard is None else hard[rows])


def _number(cold: float, logits: Tensor) -> Tensor:
    """As a tensor, so that another temperature is not compiled again."""
    return torch.tensor(cold, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)


def finite_top(known: Masses) -> Tensor:
    """The largest logits ``[n]``, 0 where no class is possible: what may be subtracted from any of them."""
    return torch.where(known.top == -torch.inf, 0.0, known.top)


def _masses(logits: Tensor, cold: float | Tensor, plain: bool) -> Masses:
    top = logits.amax(-1).to(torch.promote_types(logits.dtype, torch.float32))
    below = logits - torch.where(top == -torch.inf, 0.0, top)[:, None]
    x = below * cold
    power = x.exp()
    mass = power.sum(-1)
    log_mass = _log(mass)
    mean = (power * x.clamp(min=torch.finfo(x.dtype).min)).sum(-1) / torch.where(mass == 0, 1.0, mass)
    return Masses(top, log_mass, _log(below.exp().sum(-1)) if plain else log_mass, log_mass - mean)


def _log(mass: Tensor) -> Tensor:
    return torch.where(mass == 0, 1.0, mass).log()


def _pull(logits: Tensor, known: Masses, cold: float | Tensor, soft: Tensor, hard: Tensor | None) -> Tensor:
    below = logits - finite_top(known)[:, None]
    gradient = (below * cold - known.log_mass[:, None]).exp() * soft[:, None]
    if hard is not None:
        gradient = gradient + (below - known.log_plain[:, None]).exp() * hard[:, None]
    return logits.copy_(gradient)
