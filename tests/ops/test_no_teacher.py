"""Without a teacher: the plain cross-entropy, one head product fewer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import assert_same
from op_parts import FORMS, SHAPES, WEIGHT, Counting, gradients, problem
from torch import Tensor

import abkd
from abkd.errors import ConfigError
from abkd.ops import ChunkPlan, Head
from rounding import once_more

AB = abkd.AlphaBeta(0.2, 0.7)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_it_is_torch_s_cross_entropy(shape: dict[str, Any], compiled: bool) -> None:
    one = problem(**shape)
    one.teacher = None
    options: dict[str, Any] = {
        "targets": one.targets,
        "ce_weight": 0.7,
        "kd_weight": 0.0,
        "plan": ChunkPlan(5, compiled),
    }
    for more in ({}, {"temperature": 3.0}, {"row_weight": WEIGHT, "total_weight": 5.0}):
        for divergence in (AB, abkd.TotalVariation(), Counting()):
            result = assert_same(one, divergence, **options, **more)
            for column in (result.divergence, result.teacher_entropy, result.agreement):
                assert not column.any()
    got, given = gradients(one, AB, **options)
    plain = one.fresh()
    loss = 0.7 * torch.nn.functional.cross_entropy(plain.student.logits(slice(None)), one.targets)
    loss.backward()
    torch.testing.assert_close(got.loss, loss)
    for name, leaf in plain.leaves.items():
        torch.testing.assert_close(given[name], leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_by_hand(dtype: torch.dtype, compiled: bool) -> None:
    one = problem(333, 300, dtype=dtype, spread=2.0)
    one.teacher = None
    options: dict[str, Any] = {"targets": one.targets, "ce_weight": 1.0, "kd_weight": 0.0}
    _, wanted = gradients(one.fresh(torch.float64), AB, impl="reference", **options)
    _, by_hand = gradients(one, AB, impl="reference", **options)
    _, given = gradients(one, AB, plan=ChunkPlan(100, compiled), **options)
    for name, true in wanted.items():
        assert true is not None
        errors = [(each[name].double() - true).norm() / true.norm() for each in (given, by_hand)]
        assert errors[0] <= errors[1] + once_more(dtype), name


def test_one_product_of_the_student_s_head_is_all_that_is_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    write = Head._write

    def counted(self: Head, hidden: Tensor, out: Tensor) -> Tensor:
        made.append(len(hidden))
        return write(self, hidden, out)

    monkeypatch.setattr(Head, "_write", counted)
    one = problem()
    one.solve(AB, plan=ChunkPlan(13, False))
    one.teacher = None
    one.solve(AB, targets=one.targets, ce_weight=1.0, kd_weight=0.0, plan=ChunkPlan(13, False))
    assert made == [13, 13, 13]


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"kd_weight=1.0 needs a teacher; pass its rows or set kd_weight=0"),
        ({"kd_weight": 0.0, "row_weight": lambda facts: facts.log_p[:, 0]}, "needs a teacher, got none; pass"),
    ],
)
def test_what_needs_a_teacher_is_refused(impl: str, options: dict[str, Any], says: str) -> None:
    one = problem()
    one.teacher = None
    with pytest.raises(ConfigError, match=says):
        one.solve(AB, impl=impl, targets=one.targets, ce_weight=1.0, **options)
