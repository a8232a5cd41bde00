"""TAID (arXiv 2501.16937): the target between student and teacher, and the speed at which it moves."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkd import AlphaBeta, ForwardKL
from abkd.errors import ConfigError, OutputDirError
from abkd.recipe import load
from abkd.stateful import Evaluated, StepEnd
from abkd.terms import TAID, Interpolated
from training_parts import gap, gpt2, trainer

LOG_P, LOG_Q = torch.randn(2, 6, 9, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("divergence", [ForwardKL(), AlphaBeta(0.2, 0.7)], ids=repr)
def test_at_one_it_is_the_divergence_and_at_zero_nothing_is_learned(divergence) -> None:
    assert torch.equal(Interpolated(divergence, t=1)(LOG_P, LOG_Q), divergence(LOG_P, LOG_Q))
    log_q = LOG_Q.clone().requires_grad_()
    value = Interpolated(divergence, t=0)(LOG_P, log_q)
    (gradient,) = torch.autograd.grad(value.sum(), log_q)
    assert not value.detach().any()
    assert (gradient - LOG_Q.exp() * gradient.sum(-1, keepdim=True)).abs().max() < 1e-15


def test_between_it_is_the_formula() -> None:
    """Equation 3: the mean of the logits, the student's a constant."""
    z_p, z_q = 3 * LOG_P + 1, LOG_Q - 2  # logits are known up to a shift
    log_q = z_q.log_softmax(-1).requires_grad_()
    target = (0.7 * z_q + 0.3 * z_p).softmax(-1)
    value = Interpolated(ForwardKL(), t=0.3)(z_p.log_softmax(-1), log_q)
    torch.testing.assert_close(value, (target * (target.log() - log_q)).sum(-1))
    (slope,) = torch.autograd.grad(value.sum(), log_q)
    q = log_q.detach().exp()
    torch.testing.assert_close(slope - q * slope.sum(-1, keepdim=True), q - target)


@given(st.lists(st.floats(1e-3, 10.0), min_size=2, max_size=30), st.sampled_from([5e-4, 0.3]))
def test_a_recorded_path_of_losses_gives_the_papers_t(losses: list[float], rate: float) -> None:
    """Algorithm 1, written out; t is monotone, at least linear and at most the end."""
    spec = TAID(start=0.4, end=0.95, rate=rate, momentum=0.9)
    control, t, mean, path = spec.open(), 0.4, 0.0, [0.4]
    for step, loss in enumerate(losses, start=1):
        progress = step / len(losses)
        control.observe(StepEnd(step, progress, {"loss": loss}))
        control.observe(Evaluated(step, {"eval_loss": 3.0}))
        if step > 1:
            mean = 0.9 * mean + 0.1 * (losses[step - 2] - loss) / losses[step - 2]
            t = min(0.95, max(0.4 + 0.55 * progress, t + rate / (1 + math.exp(-mean)) * (1 - t)))
        assert control.value == pytest.approx(t, rel=1e-12)
        path.append(control.value)
    assert path == sorted(path)
    assert path[-1] == 0.95  # the end of the run
    again = spec.open()
    again.load_state_dict(control.state_dict())
    for each in (control, again):
        each.observe(StepEnd(99, 1.0, {"loss": 0.5}))
    assert again.state_dict() == control.state_dict()


def test_a_resumed_run_goes_on_with_the_same_t(tmp_path: Path) -> None:
    options = {"divergence": Interpolated(t=TAID(rate=0.5)), "max_steps": 5}
    options |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 0}
    whole = trainer(tmp_path / "whole", gpt2(0), gradient_accumulation_steps=2, **options)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = trainer(tmp_path / "resumed", gpt2(0), gradient_accumulation_steps=2, **options)
    resumed.train(resume_from_checkpoint=True)
    assert gap(resumed.model, whole.model) == 0.0
    logged = [[line["taid_t"] for line in each.state.log_history if "taid_t" in line] for each in (whole, resumed)]
    assert logged[0][2:] == logged[1][-3:]
    assert logged[0][0] == 0.4 < logged[0][1] < logged[0][2]
    other = trainer(tmp_path / "resumed", gpt2(0), **{**options, "divergence": ForwardKL()})
    with pytest.raises(OutputDirError, match="saved with another objective"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def test_the_recipe_is_the_papers_setting() -> None:
    assert load("taid").config["divergence"] == Interpolated(ForwardKL(), t=TAID(0.4, 1.0, 5e-4, 0.99))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TAID(start=1.2), "TAID: start must be a number from 0 to 1, got 1.2"),
        (lambda: TAID(start=0.5, end=0.4), "end must be at least start, got 0.4 and 0.5"),
        (lambda: Interpolated(t=1.5), "t must be a number from 0 to 1 or a schedule of such, got 1.5"),
        (lambda: Interpolated(3), "divergence must be a divergence"),
    ],
)
def test_invalid_arguments_are_refused(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
