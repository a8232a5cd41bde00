"""The four families of the paper's image classifiers: at (1, 0) each equals its base method, to the last digit.

The methods are reimplemented here from their papers, in plain torch and in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from abkd import DKD, AlphaBeta, Dense, Divergence, ForwardKL, Objective, ReverseKL, Standardized, TransformedTeacher
from abkd.errors import AbkdError
from objective_parts import loss_of

ROWS, CLASSES = 8, 10
Plain = Callable[[Tensor, Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1).mean()


def kd(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Hinton et al., with the weights of CRD's scripts: CE + 2·T²·KL, T = 4."""
    return cross_entropy(student, y) + 2 * 4**2 * kl((teacher / 4).softmax(-1), (student / 4).softmax(-1))


def dkd(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Zhao et al.: CE + T²·(TCKD + 8·NCKD), T = 4."""
    total = cross_entropy(student, y)
    for n in range(len(y)):
        p, q = (teacher[n] / 4).softmax(-1), (student[n] / 4).softmax(-1)
        here, others = y[n], [v for v in range(CLASSES) if v != y[n]]
        binary = kl(torch.stack([p[here], p[others].sum()]), torch.stack([q[here], q[others].sum()]))
        rest = kl((teacher[n, others] / 4).softmax(-1), (student[n, others] / 4).softmax(-1))
        total = total + 4**2 * (binary + 8 * rest) / len(y)
    return total


def lsd(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Sun et al.: 0.1·CE + 9·T²·KL of the z-scores, T = 2."""

    def scores(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7)

    soft = kl((scores(teacher) / 2).softmax(-1), (scores(student) / 2).softmax(-1))
    return 0.1 * cross_entropy(student, y) + 9 * 2**2 * soft


def ttm(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Zheng and Yang: CE + 76·KL(p^γ/Σp^γ ‖ q), γ = 0.1."""
    power = teacher.softmax(-1) ** 0.1
    return cross_entropy(student, y) + 76 * kl(power / power.sum(-1, keepdim=True), student.softmax(-1))


def wttm(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Zheng and Yang: each row of it times Σp^γ."""
    power, q = teacher.softmax(-1) ** 0.1, student.softmax(-1)
    weight = power.sum(-1, keepdim=True)
    p = power / weight
    return cross_entropy(student, y) + 4 * (weight * p * (p.log() - q.log())).sum(-1).mean()


class Family(NamedTuple):
    """A method's own formula, the transform around its divergence, and the other arguments of its objective."""

    plain: Plain
    around: Callable[[Divergence], Divergence]
    options: dict[str, Any]


FAMILIES = {
    "ABKD": Family(kd, lambda d: d, {"temperature": 4.0, "ce_weight": 1.0, "kd_weight": 32.0}),
    "ABKD with T²": Family(
        kd,
        lambda d: d,
        {"temperature": 4.0, "ce_weight": 1.0, "kd_weight": 2.0, "scale_by_temperature_squared": True},
    ),
    "ABDKD": Family(dkd, DKD, {"temperature": 4.0, "ce_weight": 1.0, "scale_by_temperature_squared": True}),
    "ABLSD": Family(lsd, Standardized, {"ce_weight": 0.1, "kd_weight": 36.0}),
    "ABTTM": Family(ttm, TransformedTeacher, {"ce_weight": 1.0, "kd_weight": 76.0}),
    "weighted ABTTM": Family(
        wttm, lambda d: TransformedTeacher(d, weighted=True), {"ce_weight": 1.0, "kd_weight": 4.0}
    ),
}
EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
PAPER = {  # its Table 4, the extremes of each row
    "ABKD": [(0.5, 0.5), (0.9, 0.2)],
    "ABDKD": [(0.7, 0.4), (1.0, 0.2)],
    "ABLSD": [(1.2, -0.2), (0.8, 0.4)],
    "ABTTM": [(1.0, 0.1), (0.7, 0.5)],
}


def rows(spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits (a leaf), the teacher's, labels."""
    draw = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(2, ROWS, CLASSES, generator=draw, dtype=torch.float64)
    return z[0].requires_grad_(), z[1], torch.randint(CLASSES, (ROWS,), generator=draw)


def solve(family: Family, inner: Divergence, student: Tensor, teacher: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The objective's loss, and its gradient."""
    objective = Objective(divergence=family.around(inner), **family.options)
    loss = loss_of(objective, Dense(student), Dense(teacher), y, torch.ones(len(y), dtype=torch.float64)).loss
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@EACH
@pytest.mark.parametrize("spread", [0.1, 3.0, 8.0])
def test_at_one_and_zero_it_is_the_method_it_is_made_from(family: Family, spread: float) -> None:
    student, teacher, y = rows(spread)
    wanted = family.plain(student, teacher, y)
    (slope,) = torch.autograd.grad(wanted, student)
    for inner in (AlphaBeta(1.0, 0.0), ForwardKL()):
        loss, gradient = solve(family, inner, student, teacher, y)
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12 * slope.abs().max().item())


@EACH
@pytest.mark.parametrize("point", [(1.0, 0.0), (0.0, 1.0), (0.6, 0.0), (0.0, 0.6), (0.5, -0.5), (0.0, 0.0)], ids=str)
def test_no_line_of_the_plane_divides_by_zero_or_jumps(family: Family, point: tuple[float, float]) -> None:
    """The released code does both there, and its own command for the baseline of ABLSD has α = 0."""
    student, teacher, y = rows(1.0)
    at, slope = solve(family, AlphaBeta(*point), student, teacher, y)
    assert at.isfinite()
    for step in ((1e-4, 0.0), (-1e-4, 0.0), (0.0, 1e-4), (0.0, -1e-4), (1e-4, 1e-4), (-1e-4, -1e-4)):
        beside, turned = solve(family, AlphaBeta(point[0] + step[0], point[1] + step[1]), student, teacher, y)
        assert abs(beside - at) <= 2e-3 * at.abs()
        assert (turned - slope).abs().max() <= 5e-3 * slope.abs().max()


@pytest.mark.parametrize(("name", "point"), [(name, point) for name in PAPER for point in PAPER[name]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_paper_s_settings_stay_finite_at_logits_of_a_hundred(
    name: str, point: tuple[float, float], dtype: torch.dtype
) -> None:
    student, teacher, y = rows()
    near, far = student.detach().to(dtype), (100 * torch.sign(student.detach())).to(dtype)
    sure = torch.zeros_like(far).scatter_(1, y[:, None], 100.0)  # of the label, by 100: where 1 - p_t is 0 in float32
    for z_s in (near, far, sure):
        for z_t in (teacher.to(dtype), far.flip(0), sure, sure.roll(1, 1)):
            leaf = z_s.clone().requires_grad_()
            loss, gradient = solve(FAMILIES[name], AlphaBeta(*point), leaf, z_t, y)
            assert loss.isfinite()
            assert gradient.isfinite().all()


def test_a_label_of_which_the_student_is_sure_gives_dkd_its_true_value() -> None:
    """By probabilities, 1 - q_t is 0 in float32 and the loss infinite."""
    student, teacher, y = torch.tensor([[120.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([0])
    p = teacher.double().softmax(-1)[0]
    log_rest = torch.tensor([0.0, 1.0], dtype=torch.float64).logsumexp(0) - 120.0
    binary = p[0] * p[0].log() + (1 - p[0]) * ((1 - p[0]).log() - log_rest)
    got = DKD(nckd_weight=0)(teacher.log_softmax(-1), student.log_softmax(-1), y)
    torch.testing.assert_close(got.double(), binary[None], rtol=1e-6, atol=0)
    rest = DKD(tckd_weight=0, nckd_weight=1)(teacher.log_softmax(-1), student.log_softmax(-1), y)
    assert rest.abs() < 1e-6  # among the other two they agree


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient_and_is_a_switch() -> None:
    student, teacher, y = rows(1.0)
    sizes: dict[bool, list[float]] = {True: [], False: []}
    for squared, found in sizes.items():
        for temperature in (2.0, 4.0, 8.0):
            options = {"temperature": temperature, "scale_by_temperature_squared": squared}
            family = Family(kd, DKD, options)
            found.append(solve(family, AlphaBeta(0.8, 0.3), student, teacher, y)[1].norm().item())
    assert max(sizes[True]) < 1.5 * min(sizes[True])
    assert max(sizes[False]) > 10 * min(sizes[False])


def test_a_mean_over_rows_of_the_sum_over_classes() -> None:
    """By hand, 2 x 3; released code for CLIP divides by the classes too, so its weights are C times as large."""
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3]]), torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    found = loss_of(
        Objective(divergence=ForwardKL()),
        Dense(q.log()),
        Dense(p.log()),
        torch.zeros(2, dtype=torch.int64),
        torch.ones(2),
    )
    first = 0.5 * 0.6931472 - 0.25 * 0.6931472
    second = -0.1 * 0.6931472 + 0.6 * 1.0986123 - 0.3 * 0.6931472
    assert found.loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_every_family_also_takes_other_divergences_and_one_inside_the_other() -> None:
    student, teacher, y = rows(1.0)
    seen = set()
    for around in (lambda d: d, DKD, Standardized, TransformedTeacher, lambda d: Standardized(DKD(d))):
        for inner in (ReverseKL(), AlphaBeta(0.8, 0.3)):
            loss, gradient = solve(Family(kd, around, {}), inner, student, teacher, y)
            assert gradient.isfinite().all()
            seen.add(round(loss.item(), 9))
    assert len(seen) == 10
    unlabelled = Objective(divergence=DKD())
    with pytest.raises(AbkdError, match="needs the label of each row"):
        loss_of(unlabelled, Dense(student), Dense(teacher), None, torch.ones(ROWS))
