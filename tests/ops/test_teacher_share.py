"""A mixture with a separate teacher share per row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import assert_same
from op_parts import FORMS, Problem, bucketed, confidence, gap, gradients, problem
from torch import Tensor

import abkd
from abkd.errors import ConfigError
from abkd.ops import ChunkPlan, Dense, linear_divergence

MIXTURES = [abkd.JensenShannon(0.3), abkd.SkewForwardKL(0.2), abkd.SkewReverseKL(0.2)]
SHARE = torch.rand(13, generator=torch.Generator().manual_seed(1))
OWN = {"JensenShannon": 0.3, "SkewForwardKL": 0.2, "SkewReverseKL": 0.8}  # the teacher's, of those above


def with_top_k(one: Problem, k: int, temperature: float) -> Problem:
    return replace(one, teacher=bucketed(one.teacher, k, temperature))  # type: ignore[arg-type]


def naive(kind: type, log_p: Tensor, log_q: Tensor, share: Tensor) -> Tensor:
    """As in the papers, per row; the teacher's share is ``share``."""
    w = share[:, None]
    log_m = torch.logaddexp(log_p + w.log(), log_q + torch.log1p(-w))
    of_p, of_q = (log_p.exp() * (log_p - log_m)).sum(-1), (log_q.exp() * (log_q - log_m)).sum(-1)
    both = {abkd.SkewForwardKL: of_p, abkd.SkewReverseKL: of_q}
    return both.get(kind, share * of_p + (1 - share) * of_q)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", MIXTURES, ids=repr)
@pytest.mark.parametrize("k", [None, 1, 5])
def test_every_row_is_the_divergence_of_its_own_share(
    divergence: abkd.Divergence, k: int | None, compiled: bool
) -> None:
    for option in ({}, {"temperature": 2.0}, {"row_weight": confidence}):
        one = problem(bias=True)
        one = one if k is None else with_top_k(one, k, option.get("temperature", 1.0))
        options: dict[str, Any] = {**option, "teacher_share": SHARE, "plan": ChunkPlan(5, compiled)}
        assert_same(one, divergence, **options)
        weight = (torch.arange(13.0) % 3, option["row_weight"]) if "row_weight" in option else torch.arange(13.0) % 3
        assert_same(one, divergence, **{**options, "row_weight": weight}, targets=one.targets, ce_weight=0.4)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", MIXTURES, ids=repr)
def test_it_is_what_the_papers_write_and_its_gradient_is_autograd_s(
    divergence: abkd.Divergence, compiled: bool
) -> None:
    one = problem(dense_student=True, dense_teacher=True, dtype=torch.float64)
    assert isinstance(one.teacher, Dense)
    share = SHARE.double()
    got, given = gradients(one, divergence, teacher_share=share, plan=ChunkPlan(5, compiled))
    leaf = one.leaves["values"].detach().clone().requires_grad_()
    row = naive(type(divergence), one.teacher.values.log_softmax(-1), leaf.log_softmax(-1), share)
    row.mean().backward()
    torch.testing.assert_close(got.divergence, row.detach(), rtol=1e-11, atol=0)
    assert leaf.grad is not None
    assert gap(given["values"], leaf.grad) <= 1e-13


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("divergence", MIXTURES, ids=repr)
def test_the_same_share_everywhere_is_the_ordinary_divergence(divergence: abkd.Divergence, compiled: bool) -> None:
    one = problem(bias=True, dtype=torch.float64)
    want, wanted = gradients(one, divergence, plan=ChunkPlan(5, compiled))
    share = torch.full((13,), OWN[type(divergence).__name__], dtype=torch.float64)
    got, given = gradients(one, divergence, teacher_share=share, plan=ChunkPlan(5, compiled))
    torch.testing.assert_close(got.divergence, want.divergence, rtol=1e-12, atol=0)
    for name, gradient in wanted.items():
        assert gradient is not None
        assert gap(given[name], gradient) <= 1e-13


def test_0_and_1_are_kept_a_little_off() -> None:
    one = problem(3, dtype=torch.float64)
    share = torch.tensor([0.0, 1.0, 1e-9], dtype=torch.float64)
    kept = torch.tensor([1e-6, 1 - 1e-6, 1e-6], dtype=torch.float64)
    for divergence in MIXTURES:
        got, given = gradients(one, divergence, teacher_share=share)
        want, wanted = gradients(one, divergence, teacher_share=kept)
        assert torch.equal(got.divergence, want.divergence)
        assert got.divergence.isfinite().all()
        for name, gradient in wanted.items():
            assert torch.equal(given[name], gradient)
            assert gradient.isfinite().all()


def test_it_gets_no_gradient_and_what_is_no_mixture_is_refused() -> None:
    one = problem()
    share = SHARE.clone().requires_grad_()
    one.solve(MIXTURES[0], teacher_share=share).loss.backward()
    assert share.grad is None
    for divergence in (abkd.ForwardKL(), abkd.WeightedSum((1.0, MIXTURES[0]))):
        with pytest.raises(ConfigError, match="teacher_share applies only to JensenShannon"):
            one.solve(divergence, teacher_share=SHARE)
    with pytest.raises(ConfigError, match=r"teacher_share must be \[13\]"):
        linear_divergence(one.student, one.teacher, MIXTURES[0], teacher_share=torch.tensor(0.5))
