"""AdaKD (arXiv 2510.11615): the hardest rows of a step, each at its own temperature."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkd import Hellinger, ReverseKL, Term
from abkd.errors import ConfigError
from abkd.ops import RowFacts
from abkd.recipe import load
from abkd.stateful import StepEnd
from abkd.terms import ByHardness, Hardest, LossSteered, Scores
from abkd.terms.adakd import hardness
from training_parts import gap, llama, trainer

STRICT = Term(ReverseKL(), row_weight=Hardest(0.4), temperature=ByHardness(base=1.5, strength=0.8))


def scores(values: list[float]) -> Scores:
    score = torch.tensor(values, dtype=torch.float64)
    index = torch.arange(len(values))
    return Scores(score, torch.ones_like(score), index, torch.zeros_like(index))


def test_the_hardness_is_the_hellinger_distance() -> None:
    log_p, log_q = torch.randn(2, 5, 8, dtype=torch.float64).log_softmax(-1)
    found = hardness(RowFacts(log_p, log_q, None, torch.arange(5)))
    torch.testing.assert_close(found, (log_p.exp().sqrt() - log_q.exp().sqrt()).norm(dim=-1) / math.sqrt(2))
    torch.testing.assert_close(4 * found**2, Hellinger()(log_p, log_q))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_hardest_are_kept(values: list[float], share: float) -> None:
    kept = Hardest(share).combine(scores(values), None).bool()
    assert kept.sum() == math.ceil(share * len(values))
    given = torch.tensor(values, dtype=torch.float64)
    if not kept.all():
        assert given[kept].min() >= given[~kept].max()


def test_the_temperatures_are_the_formula() -> None:
    values = [0.1, 0.2, 0.4, 0.8, 0.0]
    found = ByHardness(2.0, strength=0.5).combine(scores(values), None)
    expected = [2.0 * math.exp(-0.5 * math.tanh(math.log(s / 0.2))) for s in values[:4]]
    assert found.tolist() == pytest.approx([*expected, 2.0 * math.exp(0.5)])
    assert found[1] == 2.0  # the median
    torch.testing.assert_close(ByHardness(2.0).combine(scores([7 * s for s in values]), None), found)
    assert ByHardness(2.0, strength=0.0).combine(scores(values), None).tolist() == [2.0] * 5
    assert ByHardness().combine(scores([0.0, 0.0]), None).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0.01, 10.0), max_size=60))
def test_the_share_follows_the_loss_within_its_range(losses: list[float]) -> None:
    spec = LossSteered(start=0.5, least=0.1, decay=0.0, warmup=0.0)
    control, share, reference = spec.open(), 0.5, None
    for step, loss in enumerate(losses, start=1):
        control.observe(StepEnd(step, 0.5, {"loss": loss}))
        reference = loss if reference is None else reference
        if abs(loss / reference - 1) > 0.05:
            share = min(1.0, max(0.1, share * (1.05 if loss > reference else 0.95)))
            reference = loss
        assert control.value == pytest.approx(share)
        assert 0.1 <= control.value <= 1.0
    again = spec.open()
    again.load_state_dict(control.state_dict())
    assert again.state_dict() == control.state_dict()


def test_with_all_rows_and_one_temperature_it_is_the_loss_inside(tmp_path: Path) -> None:
    term = Term(ReverseKL(), row_weight=Hardest(1.0), temperature=ByHardness(1.0, strength=0.0))
    runs = [trainer(tmp_path / name, terms=[each]) for name, each in (("adakd", term), ("plain", Term(ReverseKL())))]
    for run in runs:
        run.train()
    assert gap(runs[0].model, runs[1].model) < 1e-6


def test_how_a_step_is_split_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for size in (4, 2, 1):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 3}
        runs.append(trainer(tmp_path / str(size), llama(0), terms=[STRICT], max_grad_norm=1.0, **split))
        runs[-1].train()
    assert gap(runs[0].model, runs[1].model) < 2e-6
    assert gap(runs[0].model, runs[2].model) < 2e-6
    plain = trainer(tmp_path / "plain", llama(0), terms=[Term(ReverseKL())], per_device_train_batch_size=4, max_steps=3)
    plain.train()
    assert gap(runs[0].model, plain.model) > 1e-3


def test_the_recipe_is_the_papers_setting() -> None:
    recipe = load("adakd")
    share = LossSteered(start=1.0, least=0.1, rate=0.05, tolerance=0.05)
    expected = Term(ReverseKL(), row_weight=Hardest(share), temperature=ByHardness(1.0, 0.5))
    assert recipe.config["terms"] == [expected]
    assert recipe.config["scale_by_temperature_squared"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hardest(0.0), "share must be above 0 and at most 1, got 0.0"),
        (lambda: Hardest(LossSteered(least=0.0)), "least must be above 0 and at most start, got 0.0"),
        (lambda: ByHardness(base=0.0), "ByHardness: base must be a finite number > 0"),
        (lambda: ByHardness(strength=-1.0), "strength must be a finite number >= 0, got -1.0"),
    ],
)
def test_invalid_arguments_are_refused(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_top_k_classes_are_not_enough() -> None:
    assert STRICT.needs().full_distribution
    assert not Term(ReverseKL(), row_weight=Hardest(0.4)).needs().full_distribution
