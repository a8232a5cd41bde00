"""Several divergences from one projection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_parts import bucketed, confidence, problem

import abkd
from abkd.errors import ConfigError
from abkd.ops import Averaged, ChunkPlan, Dense, Projected, TopK, row_metrics
from abkd.ops._row_loss_spec import RowLossSpec

WANTED = {"kl": RowLossSpec(abkd.ForwardKL()), "ab": RowLossSpec(abkd.AlphaBeta(), temperature=2.0)}


def test_every_number_is_the_op_s_own() -> None:
    one = problem(13, bias=True)
    got = row_metrics(one.student, one.teacher, WANTED, one.targets, plan=ChunkPlan(5, False))
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
    weighted = {"kl": RowLossSpec(abkd.ForwardKL(), row_weight=confidence)}
    got = row_metrics(one.student, one.teacher, weighted, one.targets)["kl"]
    expected = torch.softmax(one.teacher.logits(slice(None)), -1).amax(-1)
    torch.testing.assert_close(got, one.solve(abkd.ForwardKL()).divergence * expected)


def test_no_rows_give_empty_columns() -> None:
    one = problem(0)
    got = row_metrics(one.student, one.teacher, WANTED, one.targets)
    assert {name: column.shape for name, column in got.items()} == dict.fromkeys(
        ["kl", "ab", "cross_entropy", "agreement", "teacher_cross_entropy"], (0,)
    )


@pytest.mark.parametrize("kind", ["top-k", "averaged", "dense student"])
def test_every_kind_of_rows_gives_the_op_s_own_numbers(kind: str) -> None:
    one = problem(13, dense_student=kind == "dense student")
    assert isinstance(one.teacher, Projected)
    if kind == "averaged":
        one.teacher = Averaged((one.teacher, Dense(torch.randn(13, 37))))
    else:
        one.teacher = bucketed(one.teacher, 5, 2.0)
    temperatures = (1.0, 2.0) if kind == "averaged" else (2.0,)  # a cache has one temperature
    wanted = {f"at {t}": RowLossSpec(abkd.AlphaBeta(), temperature=t) for t in temperatures}
    got = row_metrics(one.student, one.teacher, wanted, one.targets, plan=ChunkPlan(5, False))
    for temperature in temperatures:
        want = one.solve(abkd.AlphaBeta(), temperature=temperature, targets=one.targets)
        torch.testing.assert_close(got[f"at {temperature}"], want.divergence)
        torch.testing.assert_close(got["cross_entropy"], want.cross_entropy)
        torch.testing.assert_close(got["agreement"], want.agreement)


def test_the_teacher_s_cross_entropy_as_far_as_it_is_known() -> None:
    one = problem(13)
    assert isinstance(one.teacher, Projected)
    values = 2 * torch.randn(13, 37)
    of_parts = torch.stack([values, one.teacher.logits(slice(None))]).softmax(-1).mean(0).log()
    average = row_metrics(one.student, Averaged((one.teacher, Dense(values))), {}, one.targets)
    picked = of_parts.gather(-1, one.targets[:, None]).squeeze(-1)
    torch.testing.assert_close(average["teacher_cross_entropy"], -picked)
    known = bucketed(one.teacher, 5)
    one.targets[::2] = known.ids[::2, 3]  # every other one is among the known classes, and another is not
    one.targets[1] = (set(range(37)) - set(known.ids[1].tolist())).pop()
    log_p = one.teacher.logits(slice(None)).log_softmax(-1)
    exact = -log_p.gather(-1, one.targets[:, None]).squeeze(-1)
    within = (known.ids == one.targets[:, None]).any(-1)
    assert within.any()
    assert not within.all()
    bound = row_metrics(one.student, known, {}, one.targets)["teacher_cross_entropy"]
    torch.testing.assert_close(bound, torch.where(within, exact, -known.log_tail))
    assert (bound <= exact + 1e-6).all()
    told = row_metrics(one.student, replace(known, log_target=-exact.half()), {}, one.targets, plan=ChunkPlan(5, False))
    torch.testing.assert_close(told["teacher_cross_entropy"], exact, rtol=1e-3, atol=1e-3)
    assert isinstance(known, TopK)


def test_without_distances_and_without_a_teacher() -> None:
    one = problem(13)
    every = row_metrics(one.student, one.teacher, WANTED, one.targets)
    some = row_metrics(one.student, one.teacher, {}, one.targets)
    assert set(some) == {"cross_entropy", "agreement", "teacher_cross_entropy"}
    for name, column in some.items():
        torch.testing.assert_close(column, every[name])
    alone = row_metrics(one.student, None, WANTED, one.targets, plan=ChunkPlan(5, False))
    assert set(alone) == {"kl", "ab", "cross_entropy"}
    torch.testing.assert_close(alone["cross_entropy"], every["cross_entropy"])
    assert not alone["kl"].any()


def test_a_teacher_s_share_by_the_divergence_s_name() -> None:
    one, share = problem(13), torch.rand(13)
    wanted = {"mixed": RowLossSpec(abkd.JensenShannon()), "half": RowLossSpec(abkd.JensenShannon())}
    got = row_metrics(
        one.student, one.teacher, wanted, one.targets, teacher_share={"mixed": share}, plan=ChunkPlan(5, False)
    )
    torch.testing.assert_close(got["mixed"], one.solve(abkd.JensenShannon(), teacher_share=share).divergence)
    torch.testing.assert_close(got["half"], one.solve(abkd.JensenShannon()).divergence)
    with pytest.raises(ConfigError, match="teacher_share applies only to"):
        row_metrics(one.student, one.teacher, WANTED, one.targets, teacher_share={"kl": share})
