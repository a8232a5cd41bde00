"""Which divergences between whole sequences are sums over their tokens, and which sums are only bounds.

The reference values were computed with other code for the notes on f-DISTILL (arXiv 2307.15190); numpy's generators 1
and 2 draw the same teacher and student.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from enumerated import PAIRS, Pair, reference
from torch import Tensor

from abkd import (
    AlphaBeta,
    Divergence,
    ForwardKL,
    Hellinger,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
)
from abkd.ops import Dense, linear_divergence, row_metrics
from abkd.ops._rows import RowLossSpec

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.space.classes}^{pair.space.length}")
PRIORS = [0.1, 0.5, 0.85]


def halves(pair: Pair, prior: float, share: Tensor | None = None) -> float:
    """``prior·E_p Σ KL(p_t‖m_t) + (1-prior)·E_q Σ KL(q_t‖m_t)``, one divergence for the text of each model."""
    how = {} if share is None else {"teacher_share": share}
    covering = pair.step_wise(SkewForwardKL(prior), pair.teacher, **how)
    seeking = pair.step_wise(SkewReverseKL(1 - prior), pair.student, **how)
    return (prior * covering + (1 - prior) * seeking).item()


# ------------------------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize(
    ("divergence", "sequences", "on_teacher", "on_student"),
    [
        (ForwardKL(), 3.0643, 3.0643, None),
        (ReverseKL(), 2.3369, None, 2.3369),
        (JensenShannon(), 0.4008, None, None),
        (TotalVariation(), 0.7402, 1.7558, 1.5552),
        (AlphaBeta(0.2, 0.7), 3.340, 3.210, 2.541),
        (Hellinger(), 1.945, 2.654, 2.121),
    ],
    ids=repr,
)
def test_reference_values(
    divergence: Divergence, sequences: float, on_teacher: float | None, on_student: float | None
) -> None:
    pair = reference()
    digits = 6e-4 if isinstance(divergence, AlphaBeta) and divergence.alpha * divergence.beta else 6e-5
    assert pair.between_sequences(divergence).item() == pytest.approx(sequences, abs=digits)
    for writer, wanted in ((pair.teacher, on_teacher), (pair.student, on_student)):
        if wanted is not None:
            assert pair.step_wise(divergence, writer).item() == pytest.approx(wanted, abs=digits)


def test_reference_values_of_jensen_shannon_with_the_same_share_everywhere() -> None:
    pair = reference()
    constant = {share: torch.full((len(pair.space.row),), share, dtype=torch.float64) for share in (0.1, 0.5, 0.9)}
    found = {share: halves(pair, 0.5, everywhere) for share, everywhere in constant.items()}
    assert found == {0.1: pytest.approx(1.029, abs=6e-4), 0.5: pytest.approx(0.54583, abs=6e-6),
                     0.9: pytest.approx(0.835, abs=6e-4)}  # fmt: skip
    assert halves(pair, 0.5) == pytest.approx(found[0.5], rel=1e-12)
    assert halves(pair, 0.5, pair.share()) == pytest.approx(0.40080, abs=6e-6)


def test_the_models_are_what_a_plain_loop_says() -> None:
    """The same result again, in floats and by recursion."""
    pair = reference()
    p, q = pair.log_p.exp().tolist(), pair.log_q.exp().tolist()
    places = {prefix: i for i, prefix in enumerate(y for t in range(4) for y in product(range(4), repeat=t))}
    whole, stepwise = 0.0, 0.0
    for y in product(range(4), repeat=4):
        rows = [places[y[:t]] for t in range(4)]
        likely = math.prod(p[row][token] for row, token in zip(rows, y, strict=True))
        student = math.prod(q[row][token] for row, token in zip(rows, y, strict=True))
        whole += likely * math.log(likely / student)
        stepwise += likely * sum(a * math.log(a / b) for row in rows for a, b in zip(p[row], q[row], strict=True))
    assert pair.between_sequences(ForwardKL()).item() == pytest.approx(whole, rel=1e-12)
    assert pair.step_wise(ForwardKL(), pair.teacher).item() == pytest.approx(stepwise, rel=1e-12)
    assert whole == pytest.approx(stepwise, rel=1e-12)


# --------------------------------------------------------------------------------------- what adds up and what does not


@every_pair
def test_forward_kl_adds_up_over_the_teachers_text_and_reverse_kl_over_the_students(pair: Pair) -> None:
    for divergence, writer in ((ForwardKL(), pair.teacher), (ReverseKL(), pair.student)):
        exact = pair.between_sequences(divergence).item()
        assert pair.step_wise(divergence, writer).item() == pytest.approx(exact, rel=1e-11)


@every_pair
@pytest.mark.parametrize("prior", PRIORS)
def test_divergences_through_a_mixture_add_up_with_the_share_that_follows_from_the_tokens(
    pair: Pair, prior: float
) -> None:
    share = pair.share(prior)
    exact = pair.between_sequences(JensenShannon(prior)).item()
    assert halves(pair, prior, share) == pytest.approx(exact, rel=1e-10)
    for divergence, writer, own in (
        (SkewForwardKL(prior), pair.teacher, prior),
        (SkewReverseKL(1 - prior), pair.student, 1 - prior),
    ):
        found = pair.step_wise(divergence, writer, teacher_share=share).item()
        assert found == pytest.approx(pair.between_sequences(divergence).item(), rel=1e-10)
        assert found <= -math.log(own)  # however long the sequences are


@every_pair
@pytest.mark.parametrize("prior", PRIORS)
def test_jensen_shannon_adds_up_in_one_term_over_text_of_either_writer(pair: Pair, prior: float) -> None:
    """If the sampling model is chosen at random, the share is the probability that it was the teacher."""
    either = torch.logaddexp(pair.teacher + math.log(prior), pair.student + math.log(1 - prior))
    found = pair.step_wise(JensenShannon(prior), either, teacher_share=pair.share(prior)).item()
    assert found == pytest.approx(pair.between_sequences(JensenShannon(prior)).item(), rel=1e-10)


@every_pair
@pytest.mark.parametrize("constant", [0.1, 0.5, 0.9])
def test_the_same_share_everywhere_is_an_upper_bound(pair: Pair, constant: float) -> None:
    everywhere = torch.full((len(pair.space.row),), constant, dtype=torch.float64)
    exact = pair.between_sequences(JensenShannon()).item()
    assert exact <= math.log(2)
    loose = halves(pair, 0.5, everywhere)
    if pair.space.length == 1 and constant == 0.5:
        assert loose == pytest.approx(exact, rel=1e-12)  # a single token is a sequence
    else:
        assert loose > exact * (1 + 1e-6)


@every_pair
def test_total_variation_of_the_tokens_is_an_upper_bound_for_every_writer(pair: Pair) -> None:
    exact = pair.between_sequences(TotalVariation()).item()
    on_teacher, on_student = (pair.step_wise(TotalVariation(), who).item() for who in (pair.teacher, pair.student))
    for bound in (on_teacher, on_student, (on_teacher + on_student) / 2):
        assert bound >= exact - 1e-12
    assert exact <= 1


def test_total_variation_of_the_tokens_is_no_probability() -> None:
    pair = reference()
    half_each = torch.logaddexp(pair.teacher, pair.student) - math.log(2)  # TVD in f-DISTILL: the average
    assert pair.step_wise(TotalVariation(), half_each).item() == pytest.approx(1.6555, abs=6e-5)


def test_alpha_beta_is_neither_a_sum_nor_a_bound() -> None:
    """Below at (0.2, 0.7), above at (½, ½), on the text of either model."""
    pair = reference()
    for divergence, sign in ((AlphaBeta(0.2, 0.7), -1), (Hellinger(), 1)):
        exact = pair.between_sequences(divergence).item()
        for writer in (pair.teacher, pair.student):
            assert sign * (pair.step_wise(divergence, writer).item() - exact) > 0.1


# -------------------------------------------------------------------------------------------------- methods with a name


@every_pair
def test_seq_kd_is_forward_kl_with_a_teacher_that_knows_one_sequence(pair: Pair) -> None:
    """For a sequence y*: forward KL of one-hot rows, hard labels only, and -log q(y*) are equal."""
    where, best = pair.space, int(pair.teacher.argmax())
    kept = where.sequence == best
    row, target = where.row[kept], where.target[kept]
    sure = torch.full((len(row), where.classes), -math.inf, dtype=torch.float64)
    sure[torch.arange(len(row)), target] = 0.0
    student, weight = Dense(pair.z_q[row]), torch.ones(len(row), dtype=torch.float64)
    how = {"row_weight": weight, "total_weight": 1.0}
    soft = linear_divergence(student, Dense(sure), ForwardKL(), **how).loss.item()
    hard = linear_divergence(
        student, Dense(pair.z_p[row]), ForwardKL(), targets=target, ce_weight=1.0, kd_weight=0.0, **how
    ).loss.item()
    assert soft == pytest.approx(-pair.student[best].item(), rel=1e-12)
    assert hard == pytest.approx(-pair.student[best].item(), rel=1e-12)
    whole = torch.full_like(pair.teacher, -math.inf)
    whole[best] = 0.0
    assert ForwardKL()(whole, pair.student).item() == pytest.approx(soft, rel=1e-12)


@every_pair
def test_the_two_questions_put_to_the_texts_and_what_the_kls_add_to_them(pair: Pair) -> None:
    """R_cvg: how unlikely the student finds the teacher's text. R_llh: how unlikely the teacher finds the student's.

    Forward KL is R_cvg less the teacher's entropy, which is constant: a student fitted by it minimises R_cvg. Reverse
    KL is R_llh less the student's own entropy: R_llh alone is smallest for a student with a single output.
    """
    where = pair.space
    numbers = row_metrics(
        Dense(pair.z_q[where.row]), Dense(pair.z_p[where.row]), {"kl": RowLossSpec(ForwardKL())}, where.target
    )
    student_says, teacher_says = (
        where.sum_along(numbers[name].double()) for name in ("cross_entropy", "teacher_cross_entropy")
    )
    r_cvg, r_llh = (pair.teacher.exp() * student_says).sum(), (pair.student.exp() * teacher_says).sum()
    entropies = [-(log.exp() * log).sum() for log in (pair.teacher, pair.student)]
    for found, kl, entropy in (
        (r_cvg, pair.between_sequences(ForwardKL()), entropies[0]),
        (r_llh, pair.between_sequences(ReverseKL()), entropies[1]),
    ):
        assert (found - entropy).item() == pytest.approx(kl.item(), abs=2e-6 * found.item())


def test_a_sum_over_the_vocabulary_varies_less_than_the_tokens_that_were_drawn() -> None:
    """On the teacher's sequences: the sum of the rows' forward KLs and log p(y) - log q(y); both estimate the KL."""
    pair = reference()
    rows = ForwardKL()(pair.log_p, pair.log_q)[pair.space.row]
    spreads = []
    for estimate in (pair.space.sum_along(rows), pair.teacher - pair.student):
        p = pair.teacher.exp()
        mean = (p * estimate).sum()
        assert mean.item() == pytest.approx(pair.between_sequences(ForwardKL()).item(), rel=1e-11)
        spreads.append((p * (estimate - mean) ** 2).sum().sqrt().item())
    assert spreads == [pytest.approx(1.142, abs=6e-4), pytest.approx(2.685, abs=6e-4)]
