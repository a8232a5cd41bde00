"""DIST and CLKD: compared with plain formulas, and the consequences of comparing the rows of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from abkd.divergences import CLKD, DIST, Divergence, Standardized

ROWS, CLASSES = 9, 6
BOTH = [DIST(), DIST(2.0, 0.5), CLKD(), CLKD(0.0, 1.0, 3.0), Standardized(DIST())]


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of teacher and student; the student's are a leaf."""
    z = torch.randn(2, ROWS, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z[0], (2 * z[1]).requires_grad_()


def loss(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> Tensor:
    return divergence(torch.log_softmax(z_p, -1), torch.log_softmax(z_q, -1)).mean()


def pearson(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def plain_dist(z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = z_p.softmax(-1), z_q.softmax(-1)
    inter = torch.stack([1 - pearson(p[n], q[n]) for n in range(ROWS)]).mean()
    return inter, torch.stack([1 - pearson(p[:, v], q[:, v]) for v in range(CLASSES)]).mean()


def plain_clkd(z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, q = z_p.softmax(-1), z_q.softmax(-1)
    instances = torch.stack([(p[n] / p[n].norm() - q[n] / q[n].norm()).square().sum() for n in range(ROWS)]).mean()
    columns = [(p[:, v] / p[:, v].norm() - q[:, v] / q[:, v].norm()).square().sum() for v in range(CLASSES)]
    between = (torch.corrcoef(p.T) - torch.corrcoef(q.T)).square().sum() / CLASSES**2
    return instances, torch.stack(columns).mean(), between


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (0.0, 3.0), (1.5, 0.0)])
def test_dist_is_its_formula(weights: tuple[float, float]) -> None:
    z_p, z_q = rows()
    wanted = sum(weight * part for weight, part in zip(weights, plain_dist(z_p, z_q), strict=True))
    same_value_and_gradient(loss(DIST(*weights), z_p, z_q), wanted, z_q)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 2.0)])
def test_clkd_is_its_formula(weights: tuple[float, float, float]) -> None:
    z_p, z_q = rows()
    wanted = sum(weight * part for weight, part in zip(weights, plain_clkd(z_p, z_q), strict=True))
    same_value_and_gradient(loss(CLKD(*weights), z_p, z_q), wanted, z_q)


def same_value_and_gradient(got: Tensor, wanted: Tensor | float, leaf: Tensor) -> None:
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    given, expected = (torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in (got, wanted))
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("divergence", BOTH, ids=repr)
def test_gradients_are_central_differences_for_the_student_and_for_a_teacher_that_learns(
    divergence: Divergence,
) -> None:
    z_p, z_q = rows()

    def both(one: Tensor, two: Tensor) -> Tensor:
        return divergence(torch.log_softmax(one, -1), torch.log_softmax(two, -1), teacher_grad=True).sum()

    assert torch.autograd.gradcheck(both, (z_p.requires_grad_(), z_q))
    loss(divergence, z_p, z_q).backward()
    assert z_p.grad is None


def test_what_dist_cannot_see() -> None:
    """Probabilities that are an increasing linear function of the teacher's, in every row and column."""
    p = rows()[0].softmax(-1)
    line = (0.3 * p + 0.7 / CLASSES).log()
    assert loss(DIST(), p.log(), line) < 1e-14
    assert loss(CLKD(), p.log(), line) > 0.01


def test_the_columns_see_what_the_rows_average_out() -> None:
    """A student whose every row is as close to the teacher's, but always off towards the same class."""
    p = torch.eye(CLASSES, dtype=torch.float64) + 0.2
    p = p / p.sum(-1, keepdim=True)
    number = torch.arange(CLASSES)
    scattered, one_sided = p.clone(), p.clone()
    scattered[number, (number + 1) % CLASSES] += 0.3
    one_sided[number, torch.where(number == 0, 1, 0)] += 0.3
    of_rows, of_batch = (CLKD(1, 0, 0), DIST(1, 0)), (CLKD(0, 1, 0), CLKD(0, 0, 1), DIST(0, 1))
    for divergence in of_rows:
        torch.testing.assert_close(
            loss(divergence, p.log(), scattered.log()), loss(divergence, p.log(), one_sided.log())
        )
    for divergence in of_batch:
        apart = loss(divergence, p.log(), scattered.log()) - loss(divergence, p.log(), one_sided.log())
        assert apart.abs() > 1e-3


@pytest.mark.parametrize("divergence", BOTH, ids=repr)
def test_the_batch_part_is_the_same_number_in_every_row(divergence: Divergence) -> None:
    log_p, log_q = (torch.log_softmax(z, -1) for z in rows())
    each = divergence(log_p, log_q).detach()
    alone = torch.stack([divergence(one, two) for one, two in zip(log_p, log_q, strict=True)]).detach()
    shared = each - alone
    torch.testing.assert_close(shared, shared[:1].expand(ROWS))
    assert shared[0] > 1e-3
    order = torch.randperm(ROWS)
    torch.testing.assert_close(divergence(log_p[order], log_q[order]).detach(), each[order])
    folded = divergence(log_p.reshape(3, 3, -1), log_q.reshape(3, 3, -1))
    assert torch.equal(folded.detach().reshape(-1), each)


@pytest.mark.parametrize("divergence", BOTH, ids=repr)
def test_they_depend_on_how_a_batch_is_split(divergence: Divergence) -> None:
    z_p, z_q = rows()
    halves = (4 * loss(divergence, z_p[:4], z_q[:4]) + 5 * loss(divergence, z_p[4:], z_q[4:])) / 9
    assert (halves - loss(divergence, z_p, z_q)).abs() > 1e-3


@pytest.mark.parametrize("divergence", BOTH, ids=repr)
def test_zero_with_no_slope_where_the_batches_are_equal(divergence: Divergence) -> None:
    z_p, _ = rows()
    z_q = z_p.clone().requires_grad_()
    value = loss(divergence, z_p, z_q)
    assert value == 0
    assert not torch.autograd.grad(value, z_q)[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("divergence", BOTH, ids=repr)
def test_a_batch_of_one_level_rows_and_equal_rows_and_saturated_ones_have_finite_gradients(
    divergence: Divergence, dtype: torch.dtype
) -> None:
    z_p, z_q = (z.detach().to(dtype) for z in rows())
    level, equal = torch.zeros_like(z_p), z_p[:1].expand(ROWS, -1)
    far = 100 * torch.sign(z_q)
    never = z_q.clone()
    never[:, 0] = -torch.inf
    cases = [(z_p, level), (level, z_q), (level, level), (z_p, equal), (equal, z_q), (equal, equal), (z_p, far)]
    cases += [(far, z_q), (far, -far), (z_p[:1], z_q[:1]), (level[:1], z_q[:1]), (z_p, never), (never, z_q)]
    for teacher, student in cases:
        leaf = student.clone().requires_grad_()
        value = loss(divergence, teacher, leaf)
        (grad,) = torch.autograd.grad(value, leaf)
        assert value.isfinite()
        assert grad.isfinite().all()
    assert divergence(z_p[:0], z_q[:0]).shape == (0,)


def test_what_does_not_vary_has_no_correlation_with_what_does() -> None:
    z_p, z_q = rows()
    level = torch.zeros_like(z_p)
    torch.testing.assert_close(loss(DIST(1, 0), z_p, level), torch.tensor(1.0, dtype=torch.float64))
    assert loss(DIST(), level, level) == 0
    same_row = z_p[:1].expand(ROWS, -1)  # no class varies over the batch
    torch.testing.assert_close(loss(DIST(0, 1), same_row, z_q), torch.tensor(1.0, dtype=torch.float64))
    assert loss(DIST(0, 1), same_row, z_q[:1].expand(ROWS, -1)) == 0


def test_classes_that_are_next_to_impossible_are_compared_all_the_same() -> None:
    """Correlations do not depend on scale, so probabilities of 1e-200 work too."""
    log_p, log_q = (torch.log_softmax(z.detach(), -1) for z in rows())
    down = torch.tensor([0.0, 0.0, 0.0, 0.0, -460.0, -900.0], dtype=torch.float64)
    for divergence in (DIST(0, 1), CLKD(0, 1, 1)):
        low_p, low_q = log_p + down, log_q + down
        torch.testing.assert_close(divergence(low_p, low_q), divergence(log_p, log_q), rtol=1e-10, atol=0)
