"""The objective: its value, its printed form, and how it changes during a run."""

from __future__ import annotations

import pytest
import torch

import abkd
from abkd import (
    DIST,
    DKD,
    AlphaBeta,
    Dense,
    ForwardKL,
    Hellinger,
    ReverseKL,
    Standardized,
    TeacherConfidence,
    Term,
    TransformedTeacher,
    anneal,
    stages,
)
from abkd.errors import ConfigError
from abkd.models.rows import Outputs
from abkd.objective import Objective
from objective_parts import batch_of, loss_of

ROWS, CLASSES = 6, 11


@pytest.fixture
def logits():
    return torch.randn(ROWS, CLASSES, dtype=torch.float64), 2 * torch.randn(ROWS, CLASSES, dtype=torch.float64)


def test_it_is_the_sum_that_its_docstring_says(logits):
    z_q, z_p = logits
    targets, weight = torch.arange(ROWS), torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.5])
    objective = Objective(
        divergence=ReverseKL(),
        temperature=2.0,
        ce_weight=0.3,
        kd_weight=anneal(0.0, 4.0),
        scale_by_temperature_squared=True,
        row_weight=TeacherConfidence(2.0),
    )
    out = loss_of(objective, Dense(z_q), Dense(z_p), targets, weight, progress=0.25, total_weight=8.0)
    log_q, log_p = (torch.log_softmax(z / 2.0, -1) for z in logits)
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
    hard = torch.nn.functional.cross_entropy(z_q, targets, reduction="none")
    used = weight * log_p.exp().max(-1).values ** 2
    expected = (used * (0.3 * hard + 1.0 * 4.0 * reverse)).sum() / 8.0
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    opened = objective.open()
    ((active, inputs, _),) = opened.evaluation_specs(Outputs(Dense(z_q)), Outputs(Dense(z_p)), batch_of(weight), 0.25)
    assert active.term.values(inputs, reverse, hard).tolist() == pytest.approx((0.3 * hard + 4.0 * reverse).tolist())


def test_schedules_follow_the_progress(logits):
    z_q, z_p = logits
    weight = torch.ones(ROWS)
    objective = Objective(divergence=stages((0.5, ForwardKL()), (0.5, Hellinger())))
    for progress, divergence in ((0.0, ForwardKL()), (0.49, ForwardKL()), (0.5, Hellinger()), (1.0, Hellinger())):
        found = loss_of(
            objective, Dense(z_q), Dense(z_p), torch.zeros(ROWS, dtype=torch.int64), weight, progress=progress
        )
        assert found.loss.item() == pytest.approx(abkd.divergence_loss(z_q, z_p, divergence).item(), rel=1e-12)
        assert objective.at(progress)[0].divergence == divergence


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (Objective(divergence=AlphaBeta(0.2, 0.7)), "L = mean over response tokens of D_AB(p‖q; α=0.2, β=0.7),  T = 1"),
        (
            Objective(divergence=ForwardKL(), ce_weight=0.5, kd_weight=32, temperature=2.0),
            "L = mean over response tokens of (0.5·CE + 32·KL(p‖q)),  T = 2",
        ),
        (
            Objective(divergence=ReverseKL(), scale_by_temperature_squared=True, lm_coef=1.0),
            "L = mean over response tokens of T²·KL(q‖p) + CE(plain text),  T = 1",
        ),
        (
            Objective(divergence=Hellinger(), kd_weight=anneal(0.0, 1.0), row_weight=TeacherConfidence(), lm_coef=0.5),
            (
                "L = mean over response tokens of TeacherConfidence(power=1.0)·(anneal(0.0, 1.0, shape='linear')·"
                "Hellinger()) + 0.5·CE(plain text),  T = 1"
            ),
        ),
        (
            Objective(divergence=Standardized(DKD(AlphaBeta(0.8, 0.3))), ce_weight=0.1, kd_weight=36),
            (
                "L = mean over response tokens of (0.1·CE + 36·[(1·KL(label) + 8·[D_AB(p‖q; α=0.8, β=0.3) of the "
                "others]) of z-scores/2]),  T = 1"
            ),
        ),
        (
            Objective(divergence=TransformedTeacher(ForwardKL(), weighted=True)),
            "L = mean over response tokens of Σp^0.1·[KL(p‖q) with p ∝ p^0.1],  T = 1",
        ),
        (
            Objective(terms=stages((28, [Term(ForwardKL(), ce_weight=0.2, kd_weight=0.8)]), (12, [Term(DIST(1, 2))]))),
            (
                "L = [for 70%: mean over response tokens of (0.2·CE + 0.8·KL(p‖q)); then for 30%: "
                "mean over response tokens of (1·(1-ρ of rows) + 2·(1-ρ of columns))],  T = 1"
            ),
        ),
    ],
)
def test_it_is_printed_as_a_formula(objective, formula):
    assert objective.formula() == formula
    assert objective.formula("images") == formula.replace("response tokens", "images")


def test_it_is_a_value():
    assert Objective(divergence=ForwardKL()) == Objective(divergence=ForwardKL())
    with pytest.raises(ConfigError, match="nothing would be learned"):
        Objective(divergence=ForwardKL(), kd_weight=0.0)


def test_a_short_stage_is_among_the_terms_that_are_looked_at_before_a_run():
    short = abkd.stages((0.1, ForwardKL()), (0.2, abkd.Standardized(ForwardKL())), (0.7, ForwardKL()))
    objective = Objective(divergence=short, kd_weight=abkd.stages((97, 0.0), (1, 2.0), (2, 0.0)))
    divergences = {term.divergence for term in objective.all_terms()}
    assert divergences == {ForwardKL(), abkd.Standardized(ForwardKL())}
    assert {term.kd_weight for term in objective.all_terms()} == {0.0, 2.0}
    assert objective.ever_needs_teacher()
    assert objective.changes
