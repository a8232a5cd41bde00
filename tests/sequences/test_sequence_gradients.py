"""Gradients on the enumerated models when sampling is not differentiated."""

from __future__ import annotations

import pytest
import torch
from enumerated import PAIRS, Pair, space, table
from torch import Tensor

from abkd import (
    AlphaBeta,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
)

SMALL = space(3, 3)
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.space.classes}^{pair.space.length}")


def small(seed: int = 5) -> Pair:
    return Pair(SMALL, table(SMALL, seed), table(SMALL, seed + 1))


def learning(pair: Pair) -> Pair:
    """The same pair with a student that requires gradients."""
    return pair.with_student(pair.z_q.clone().requires_grad_())


def gradient(loss: Tensor, pair: Pair) -> Tensor:
    return torch.autograd.grad(loss, pair.z_q, retain_graph=True)[0]


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------- what a step differentiates


@every_pair
def test_forward_kl_on_the_teachers_text_has_the_gradient_of_the_sequences(pair: Pair) -> None:
    pair = learning(pair)
    assert close(
        gradient(pair.step_wise(ForwardKL(), pair.teacher), pair), gradient(pair.between_sequences(ForwardKL()), pair)
    )


@every_pair
def test_reverse_kl_on_the_students_text_leaves_out_what_its_tokens_lead_to(pair: Pair) -> None:
    """The full gradient is that of the rows plus a score term: each token is credited with the rows after it."""
    pair, where = learning(pair), pair.space
    rows = ReverseKL()(pair.log_p, pair.log_q)[where.row].detach()
    total = where.sum_along(rows)[where.sequence]
    before = torch.cat([torch.cat([x.new_zeros(1), x.cumsum(0)[:-1]]) for x in rows.split(_lengths(pair))])
    later = total - before - rows
    weight = pair.student.detach().exp()[where.sequence]
    score = (weight * later * where.of_tokens(pair.log_q)).sum()
    rows_only = gradient(pair.step_wise(ReverseKL(), pair.student), pair)
    whole = gradient(pair.between_sequences(ReverseKL()), pair)
    assert close(rows_only + gradient(score, pair), whole)
    assert pair.space.length == 1 or not torch.allclose(rows_only, whole, rtol=1e-3)


def _lengths(pair: Pair) -> list[int]:
    return [len(y) for y in pair.space.written]


@pytest.mark.parametrize(
    ("divergence", "who", "posterior"),
    [
        (ForwardKL(), "student", False),
        (ReverseKL(), "teacher", False),
        (ReverseKL(), "student", False),
        (TotalVariation(), "student", False),
        (AlphaBeta(0.2, 0.7), "student", False),
        (JensenShannon(), "student", True),
        (SkewForwardKL(0.5), "teacher", True),
        (SkewReverseKL(0.5), "student", True),
    ],
    ids=str,
)
def test_the_gradient_is_that_of_rows_whose_writers_and_shares_stand_still(
    divergence: Divergence, who: str, posterior: bool
) -> None:
    """Central differences of the loss, with fixed sequence probabilities and shares."""
    still = small()
    written_by = getattr(still, who)
    how = {"teacher_share": still.share()} if posterior else {}

    def loss(z_q: Tensor) -> Tensor:
        return still.with_student(z_q).step_wise(divergence, written_by, **how)

    assert torch.autograd.gradcheck(loss, (still.z_q.clone().requires_grad_(),), atol=1e-7, rtol=1e-5)
    live = learning(small())
    how = {"teacher_share": live.share()} if posterior else {}
    taken = gradient(live.step_wise(divergence, getattr(live, who), **how), live)
    again = still.z_q.clone().requires_grad_()
    assert close(taken, torch.autograd.grad(loss(again), again)[0])


# ----------------------------------------------------------------------------------------------------- the four corners


def corners(pair: Pair) -> dict[str, tuple[Divergence, str, Tensor]]:
    """Whose text × which KL, and the known loss of each combination, from sampled tokens only."""
    where = pair.space
    log_p, log_q = where.of_tokens(pair.log_p), where.of_tokens(pair.log_q)
    teacher, student = (x.detach().exp()[where.sequence] for x in (pair.teacher, pair.student))
    advantage = (log_p - log_q).detach()
    # the teacher's label for a token of the student's text, and the student's token in the teacher's, by importance
    relabelled, replaced = (log_p - log_q).detach().exp(), (log_q - log_p).detach().exp()
    return {
        "SFT": (ForwardKL(), "teacher", -(teacher * log_q).sum()),
        "DAgger": (ForwardKL(), "student", -(student * relabelled * log_q).sum()),
        "offline RL": (ReverseKL(), "teacher", -(teacher * replaced * advantage * log_q).sum()),
        "on-policy distillation": (ReverseKL(), "student", -(student * advantage * log_q).sum()),
    }


@every_pair
@pytest.mark.parametrize("name", ["SFT", "DAgger", "offline RL", "on-policy distillation"])
def test_four_corners_of_text_and_direction_are_methods_with_a_name(pair: Pair, name: str) -> None:
    """In gradient: likelihood of the teacher's text, imitation on the student's text, and policy gradients with the
    reward log p - log q, from the teacher's actions or from the student's own."""
    pair = learning(pair)
    divergence, who, named = corners(pair)[name]
    assert close(gradient(pair.step_wise(divergence, getattr(pair, who)), pair), gradient(named, pair))


# ------------------------------------------------------------------------------------------- estimates taken for losses


def estimates(log_ratio: Tensor) -> dict[str, Tensor]:
    """Estimators of KL(q‖p) from samples of q, ``log_ratio = log p - log q``; k1 and k3 are unbiased, k2 nearly."""
    return {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": torch.expm1(log_ratio) - log_ratio}


@every_pair
def test_estimates_that_mean_reverse_kl_do_not_have_its_gradient_as_losses(pair: Pair) -> None:
    """For whole sequences: the expected gradient of k1 is 0, that of k2 is reverse KL, of k3 forward KL."""
    pair = learning(pair)
    sampled = pair.student.detach().exp()
    found = {name: (sampled * k).sum() for name, k in estimates(pair.teacher - pair.student).items()}
    reverse, forward = (pair.between_sequences(d) for d in (ReverseKL(), ForwardKL()))
    for name in ("k1", "k3"):
        assert found[name].item() == pytest.approx(reverse.item(), rel=1e-9)
    assert gradient(found["k1"], pair).abs().max() < 1e-12
    assert close(gradient(found["k2"], pair), gradient(reverse, pair))
    assert close(gradient(found["k3"], pair), gradient(forward, pair))


@every_pair
def test_estimates_at_each_token_have_the_gradients_of_the_rows(pair: Pair) -> None:
    """The same token by token, on the student's text: k2 is on-policy distillation, k3 is DAgger."""
    pair, where = learning(pair), pair.space
    sampled = pair.student.detach().exp()[where.sequence]
    log_ratio = where.of_tokens(pair.log_p) - where.of_tokens(pair.log_q)
    k1, k2, k3 = (gradient((sampled * k).sum(), pair) for k in estimates(log_ratio).values())
    assert k1.abs().max() < 1e-12
    assert close(k2, gradient(pair.step_wise(ReverseKL(), pair.student), pair))
    assert close(k3, gradient(pair.step_wise(ForwardKL(), pair.student), pair))
