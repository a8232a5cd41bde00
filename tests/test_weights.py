"""Row weights: a number >= 0 for every row, computed from the two distributions."""

from __future__ import annotations

import math

import pytest
import torch

from abkd import TeacherConfidence, notation
from abkd.errors import ConfigError
from abkd.ops import RowFacts


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_teacher_confidence(power):
    log_p = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.7, 0.1]]))
    log_q = torch.log_softmax(torch.randn(3, 3), -1)
    found = TeacherConfidence(power)(RowFacts(log_p, log_q, None, torch.arange(3)))
    assert found.tolist() == pytest.approx([0.5**power, 1.0, 0.7**power])
    of_equals = TeacherConfidence(power)(RowFacts(log_p, log_p, None, torch.arange(3)))
    assert torch.equal(found, of_equals)  # independent of the student


@pytest.mark.parametrize("power", [-1.0, math.nan, math.inf, "2"])
def test_a_power_that_cannot_be_meant(power):
    with pytest.raises(ConfigError, match="power must be a finite number >= 0"):
        TeacherConfidence(power)


def test_it_has_a_notation():
    assert notation.parse("TeacherConfidence(2.0)") == TeacherConfidence(2.0)
    assert notation.parse(notation.render(TeacherConfidence(0.5))) == TeacherConfidence(0.5)
