"""Several models as one teacher: the op's result equals that of their average, computed by hand."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from teacher_parts import a_batch, logits, own_logits, setting

import abkd
from abkd.errors import ConfigError
from abkd.models.language import CausalRows
from abkd.teachers import Ensemble, Live
from training_parts import gpt2, llama

V = 340
DIVERGENCES = [abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL(), abkd.ReverseKL(), abkd.JensenShannon()]


def members() -> list[Any]:
    """Different widths, families and head sizes."""
    return [model.double() for model in (llama(1), gpt2(2, width=48), llama(3, classes=384, layers=2))]


def averaged(average: str, temperature: float, models: list[Any], view: Any) -> torch.Tensor:
    """Logits (at ``temperature``) of the average over the shared classes."""
    each = torch.stack([own_logits(model, view)[:, :V] for model in models])
    if average == "logits":
        return each.mean(0)
    return temperature * torch.softmax(each / temperature, -1).mean(0).log()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_ensemble_is_the_average_of_its_members(average, temperature):
    student, models, batch = llama(0).double(), members(), a_batch()
    reader = Ensemble(average).open(setting(student, *models))
    assert reader.head_rows == V
    for divergence in DIVERGENCES:
        losses, slopes = [], []
        for teacher in (reader(batch.teacher), None):
            rows = CausalRows(student)(batch.student)
            student.zero_grad()
            if teacher is None:
                z = averaged(average, temperature, models, batch.teacher)
                loss = abkd.divergence_loss(rows.logits(slice(None)), z, divergence, temperature=temperature)
            else:
                loss = abkd.linear_divergence(rows, teacher, divergence, temperature=temperature).loss
            loss.backward()
            losses.append(loss.item())
            slopes.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        assert losses[0] > 1e-3
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        assert (slopes[0] - slopes[1]).abs().max() <= 1e-12 * slopes[1].abs().max()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_equal_members_are_one_teacher(average):
    student, model, batch = llama(0), llama(1), a_batch()
    rows = CausalRows(student)(batch.student).detach()
    one = Live().open(setting(student, model))(batch.teacher)
    three = Ensemble(average).open(setting(student, model, model, model))(batch.teacher)
    expected = abkd.linear_divergence(rows, one, abkd.AlphaBeta(0.2, 0.7)).divergence
    found = abkd.linear_divergence(rows, three, abkd.AlphaBeta(0.2, 0.7)).divergence
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)


def test_all_members_are_frozen_and_cut_to_the_classes_asked_for():
    models, batch = members(), a_batch()
    for model in models:
        model.train()
    reader = Ensemble().open(setting(llama(0), *models))
    reader.classes = 300
    rows = reader(batch.teacher)
    assert list(reader.models) == models
    assert [part.classes for part in rows.parts] == [300, 300, 300]
    for model, part in zip(models, rows.parts, strict=True):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not part.hidden.requires_grad
        expected = own_logits(model, batch.teacher)[:, :300]
        torch.testing.assert_close(part.logits(slice(None)), expected, rtol=1e-12, atol=1e-12)


class Scaled(transformers.LlamaForCausalLM):
    """A scale that is not in the configuration."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out


def test_every_member_checks_its_head(caplog):
    odd = Scaled(llama(5).config)
    reader = Ensemble().open(setting(llama(0), llama(1), odd))
    with caplog.at_level(logging.WARNING, "abkd"):
        reader.check()
    assert "Scaled is read through its logits" in caplog.text
    view = a_batch().teacher
    expected = own_logits(odd, view)
    torch.testing.assert_close(reader(view).parts[1].logits(slice(None)), expected, rtol=0, atol=0)


def test_a_live_teacher_is_frozen_and_cut():
    model, view = llama(1).train(), a_batch().teacher
    reader = Live().open(setting(llama(0), model))
    assert reader.head_rows == V
    assert list(reader.models) == [model]
    reader.classes = 200
    found = logits(reader, view)
    assert not found.requires_grad
    assert not model.training
    torch.testing.assert_close(found, own_logits(model, view)[:, :200], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ConfigError, match="average must be probabilities or logits, got 'mean'"):
        Ensemble("mean")  # type: ignore[arg-type]
