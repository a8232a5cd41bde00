"""Several distances from one projection."""

from __future__ import annotations

import torch
from op_parts import problem

import abkd
from abkd.ops import Plan, row_metrics
from abkd.ops._terms import Terms

WANTED = {"kl": Terms(abkd.ForwardKL()), "ab": Terms(abkd.AlphaBeta(), temperature=2.0)}


def test_every_number_is_the_op_s_own() -> None:
    one = problem(13, bias=True)
    got = row_metrics(one.student, one.teacher, WANTED, one.targets, plan=Plan(5, False))
    kl = one.solve(abkd.ForwardKL(), targets=one.targets)
    ab = one.solve(abkd.AlphaBeta(), temperature=2.0)
    torch.testing.assert_close(got["kl"], kl.divergence)
    torch.testing.assert_close(got["ab"], ab.divergence)
    torch.testing.assert_close(got["cross_entropy"], kl.cross_entropy)
    torch.testing.assert_close(got["agreement"], kl.agreement)
    teacher = torch.nn.functional.cross_entropy(one.teacher.logits(slice(None)), one.targets, reduction="none")
    torch.testing.assert_close(got["teacher_cross_entropy"], teacher)
    assert not any(column.requires_grad for column in got.values())


def test_row_weight_functions_weigh_their_column() -> None:
    one = problem(13)
    weighted = {"kl": Terms(abkd.ForwardKL(), row_weight=lambda log_p, log_q: log_p.exp().amax(-1))}
    got = row_metrics(one.student, one.teacher, weighted, one.targets)["kl"]
    confidence = torch.softmax(one.teacher.logits(slice(None)), -1).amax(-1)
    torch.testing.assert_close(got, one.solve(abkd.ForwardKL()).divergence * confidence)


def test_no_rows_give_empty_columns() -> None:
    one = problem(0)
    got = row_metrics(one.student, one.teacher, WANTED, one.targets)
    assert {name: column.shape for name, column in got.items()} == dict.fromkeys(
        ["kl", "ab", "cross_entropy", "agreement", "teacher_cross_entropy"], (0,)
    )
