"""Laws of every divergence, as functions ``law(divergence, z_p, z_q)`` of two rows of float64 logits.

A divergence that is exported from ``abkd.divergences`` is tested on all of them; one that truly does not obey a law
names it, with the reason, in its ``exempt``.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from law_book import FINITE, INF, SMOOTH, at, close, gradient, law, log_softmax, noise, read_back, slope, value, without
from torch import Tensor

from abkd.divergences import Divergence


@law(*FINITE)
def zero_where_equal(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """Exactly 0, with a gradient of exactly 0, in any precision and with impossible classes."""
    cut = without(z_p, torch.arange(len(z_p)) == len(z_p) - 1)
    for z in (z_p, z_q, z_p.float(), z_q.float(), cut, cut.float()):
        row = log_softmax(z)
        assert value(divergence, z, z).item() == 0.0, "D(p, p) is not exactly 0"
        assert not slope(divergence, row, row).any(), "the gradient of D(p, q) in log q is not exactly 0 at q = p"


@law(*SMOOTH, "ties")
def positive_where_different(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    distance = (log_softmax(z_p).exp() - log_softmax(z_q).exp()).abs().max()
    if distance > 1e-7:
        assert value(divergence, z_p, z_q) > 0


@law(*FINITE)
def never_negative(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    for one, two in ((z_p, z_q), (z_p.float(), z_q.float())):
        eps = torch.finfo(one.dtype).eps
        assert value(divergence, one, two) >= -eps
        assert value(divergence, one, one + 1e-3 * two) >= -eps


@law(*FINITE)
def blind_to_the_order_of_classes(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    log_p, log_q = log_softmax(z_p), log_softmax(z_q)
    order = torch.randperm(len(z_p), generator=torch.Generator().manual_seed(1))
    label, slack = log_p.argmax(), noise(divergence)
    moved = order.argsort()[label]
    assert close(at(divergence, log_p[order], log_q[order], moved), at(divergence, log_p, log_q, label), 1e-12, slack)
    got = slope(divergence, log_p[order], log_q[order], moved)
    assert close(got, slope(divergence, log_p, log_q, label)[order], 1e-12, slack)


@law(*FINITE)
def blind_to_a_shift_of_logits(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    z_p, z_q = torch.round(z_p * 1024) / 1024, torch.round(z_q * 1024) / 1024  # so that the shift is exact
    assert torch.equal(value(divergence, z_p + 16, z_q - 8), value(divergence, z_p, z_q))


def _against_central_differences(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    step = 1e-5
    shifts = step * torch.eye(len(z_q), dtype=torch.float64)
    teacher = z_p.expand(len(z_q), -1)
    numeric = (value(divergence, teacher, z_q + shifts) - value(divergence, teacher, z_q - shifts)) / (2 * step)
    analytic = gradient(divergence, z_p, z_q)
    noise = 1e-9 * len(z_q) * (1 + value(divergence, z_p, z_q).item())
    assert torch.allclose(analytic, numeric, rtol=1e-6, atol=noise + 1e-7 * analytic.abs().max().item())


@law("ordinary")
def gradient_is_the_central_difference(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    _against_central_differences(divergence, z_p, z_q)


@law("near")
def gradient_is_smooth_where_equal(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    _against_central_differences(divergence, z_p, z_q)


@law("ordinary")
def gradient_passes_gradcheck(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    size = max(1.0, gradient(divergence, z_p, z_q).abs().max().item())
    z_q = z_q.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: value(divergence, z_p, z), (z_q,), atol=1e-7 * size, rtol=1e-5, fast_mode=True
    )


@law("ordinary")
def teacher_gradient_passes_gradcheck(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    def both(one: Tensor, two: Tensor) -> Tensor:
        return at(divergence, log_softmax(one), log_softmax(two), teacher_grad=True)

    one, two = z_p.clone().requires_grad_(), z_q.clone().requires_grad_()
    grads = torch.autograd.grad(both(one, two), (one, two))
    size = max(1.0, *(grad.abs().max().item() for grad in grads))
    assert torch.autograd.gradcheck(both, (one, two), atol=1e-7 * size, rtol=1e-5, fast_mode=True)


@law(*FINITE)
def gradient_sums_to_zero(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    if value(divergence, z_p, z_q) < 1e100:
        grad = gradient(divergence, z_p, z_q)
        weights = slope(divergence, log_softmax(z_p), log_softmax(z_q))
        assert abs(grad.sum().item()) <= 1e-12 * weights.abs().sum().item()


@law(*FINITE)
def classes_impossible_to_both_do_not_matter(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    wide = (torch.arange(2 * len(z_p)) % 2 == 0, 2 * len(z_p))

    def spread(x: Tensor, fill: float) -> Tensor:
        return torch.full((wide[1],), fill, dtype=x.dtype).masked_scatter(wide[0], x)

    log_p, log_q, slack = log_softmax(z_p), log_softmax(z_q), noise(divergence)
    wide_p, wide_q = spread(log_p, -INF), spread(log_q, -INF)
    assert close(at(divergence, wide_p, wide_q), at(divergence, log_p, log_q), 1e-12, slack)
    assert close(slope(divergence, wide_p, wide_q), spread(slope(divergence, log_p, log_q), 0), 1e-12, slack)
    if value(divergence, z_p, z_q) < 1e100:
        grad = gradient(divergence, spread(z_p, -INF), spread(z_q, -INF))
        assert grad.isfinite().all()
        assert not grad[~wide[0]].any()


def _with_depth(whose: str, z_p: Tensor, z_q: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """The first class at logit ``-depth`` for one of the two, or a different class for each."""
    number = torch.arange(len(z_p))
    if whose in ("teacher", "each"):
        z_p = z_p.masked_fill(number == 0, -depth)
    if whose in ("student", "each"):
        z_q = z_q.masked_fill(number == (0 if whose == "student" else 1), -depth)
    return z_p, z_q


@law(*SMOOTH, "ties")
def a_class_impossible_to_one_is_a_limit(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """Value and gradient at ``-inf`` are the limits for falling logits; infinite values are ``+inf``."""
    for whose in ("teacher", "student", "each"):
        pairs = [_with_depth(whose, z_p, z_q, depth) for depth in (1e5, 1e6, INF)]
        before, last, limit = (value(divergence, *each) for each in pairs)
        converges = abs(last - before) <= 1e-9 * last.abs()
        assert limit.item() == (pytest.approx(last.item(), rel=1e-6) if converges else INF), whose
        before, last, limit = (gradient(divergence, *each) for each in pairs)
        if before.isfinite().all() and last.isfinite().all() and close(before, last, 1e-9):
            assert limit.isfinite().all(), whose
            assert not converges or close(limit, last, 1e-6), whose


@law(*FINITE)
def never_nan(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """Any impossible classes on either side, in both precisions; no infinite gradient if the value is moderate."""
    number = torch.arange(len(z_p))
    for one in (z_p, without(z_p, number % 2 == 0), without(z_p, number > 0)):
        for two in (z_q, without(z_q, number % 3 == 0), without(z_q, number != 1)):
            for dtype in (torch.float64, torch.float32):
                log_p, log_q = log_softmax(one.to(dtype)), log_softmax(two.to(dtype))
                result, grad = at(divergence, log_p, log_q), slope(divergence, log_p, log_q)
                assert not result.isnan()
                assert not grad.isnan().any()
                if result < 1e15:
                    assert grad.isfinite().all()


@law("ordinary", "ties")
def one_hot_rows(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    number = torch.arange(len(z_p))
    first, second = without(torch.zeros_like(z_p), number != 0), without(torch.zeros_like(z_p), number != 1)
    for dtype in (torch.float64, torch.float32):
        assert value(divergence, first.to(dtype), first.to(dtype)) == 0
        assert value(divergence, first.to(dtype), second.to(dtype)) > 0
        assert value(divergence, first.to(dtype), z_q.to(dtype)) > 0
        assert value(divergence, z_p.to(dtype), second.to(dtype)) > 0


@law(*SMOOTH)
def equal_everywhere(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """All classes equal on both sides: 0; on the teacher's side only: a minimum for the student."""
    level = torch.zeros_like(z_p)
    assert value(divergence, level, level) == 0
    assert value(divergence, level, level + 3) == 0
    assert not gradient(divergence, level, level).any()
    assert value(divergence, level, z_q) >= 0
    assert value(divergence, z_p, level) >= 0


@law("ordinary")
def a_single_class_is_certain(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    assert value(divergence, z_p[:1], z_q[:1]) == 0
    assert not gradient(divergence, z_p[:1], z_q[:1]).any()


@law("ordinary")
def teacher_is_a_constant_unless_asked(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    log_p, log_q = log_softmax(z_p).requires_grad_(), log_softmax(z_q).requires_grad_()
    at(divergence, log_p, log_q).backward()
    assert log_p.grad is None
    assert log_q.grad is not None
    assert not at(divergence, log_p, log_q.detach()).requires_grad
    at(divergence, log_p, log_q.detach(), teacher_grad=True).backward()
    assert log_p.grad is not None
    assert log_p.grad.any()


@law(*FINITE)
def rows_are_independent(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """``[..., V] -> [...]``: any batch shape, no row at all, any strides; each row's gradient times its own weight."""
    slack = noise(divergence)
    z_p, z_q = torch.stack([z_p, z_q, z_p]), torch.stack([z_q, z_p, z_q + z_p])
    log_p, log_q = log_softmax(z_p), log_softmax(z_q)
    single = torch.stack([at(divergence, one, two) for one, two in zip(log_p, log_q, strict=True)])
    assert single.shape == (3,)
    assert close(at(divergence, log_p, log_q), single, 1e-12, slack)
    assert close(at(divergence, log_p.expand(2, 3, -1), log_q.expand(2, 3, -1)), single.expand(2, 3), 1e-12, slack)
    assert close(at(divergence, log_p.T.contiguous().T, log_q.T.contiguous().T), single, 1e-12, slack)
    assert at(divergence, log_p[:0], log_q[:0]).shape == (0,)
    if single.max() < 1e100:
        weight = torch.tensor([1.0, 0.0, -2.5], dtype=torch.float64)
        leaf = log_q.clone().requires_grad_()
        grad = torch.autograd.grad((weight * at(divergence, log_p, leaf)).sum(), leaf)[0]
        alone = [w * slope(divergence, one, two) for w, one, two in zip(weight, log_p, log_q, strict=True)]
        assert close(grad, torch.stack(alone), 1e-12, slack)


@law("ordinary")
def unequal_shapes_are_refused(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    for cut in (z_q[:-1], z_q[None]):
        with pytest.raises(ValueError, match="shape"):
            at(divergence, log_softmax(z_p), log_softmax(cut))


@law(*FINITE)
def float32_is_as_good_as_float64(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """On the same float32 log-probabilities, where float32 can hold the result."""
    log_p, log_q = log_softmax(z_p.float()), log_softmax(z_q.float())
    single, double = at(divergence, log_p, log_q), at(divergence, log_p.double(), log_q.double())
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    if 1e-33 < double < 1e38:
        assert single.item() == pytest.approx(double.item(), rel=2e-6)
        exact = slope(divergence, log_p.double(), log_q.double())
        if 1e-30 < exact.abs().max() < 1e30:
            # the exponent of a slope is rounded: up to 104·ε of a number that small
            assert close(slope(divergence, log_p, log_q), exact, 2e-5)


@law(*SMOOTH, "sharp")
def half_precision_is_widened(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """bfloat16 and float16 rows are computed in float32; only the gradient comes back in the input's precision."""
    for dtype in (torch.bfloat16, torch.float16):
        log_p, log_q = log_softmax(z_p).to(dtype), log_softmax(z_q).to(dtype).requires_grad_()
        result = at(divergence, log_p, log_q)
        assert result.dtype == torch.float32
        assert torch.equal(result, at(divergence, log_p.float(), log_q.float()).detach())
        if result < 1e4:
            result.backward()
            assert log_q.grad is not None
            assert log_q.grad.dtype == dtype
            assert torch.equal(log_q.grad, slope(divergence, log_p.float(), log_q.float()).to(dtype))


@law("ordinary")
def it_is_a_value(divergence: Divergence, z_p: Tensor, z_q: Tensor) -> None:
    """Frozen, hashable, equal by value, with a ``repr`` that can be read back."""
    again = read_back(repr(divergence))
    assert again == divergence
    assert type(again) is type(divergence)
    assert hash(again) == hash(divergence)
    assert repr(again) == repr(divergence)
    assert isinstance(again, Divergence)
    assert torch.equal(value(again, z_p, z_q), value(divergence, z_p, z_q))
    assert divergence.written()
    for each in fields(divergence):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(divergence, each.name, None)
