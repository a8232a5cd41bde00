"""Base-to-new metrics compared with a loop in plain Python, and edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from abkd.errors import ConfigError
from abkd.models.base_to_new import columns, metrics


def sums(logits, targets, base):
    return {name: column.sum().item() for name, column in columns(logits, targets, base).items()}


def by_hand(logits, targets, base):
    """Accuracies, image by image."""
    right, count = {"base": 0, "new": 0}, {"base": 0, "new": 0}
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        half = "base" if target in base else "new"
        rivals = [c for c in range(len(row)) if (c in base) == (target in base)]
        right[half] += max(rivals, key=lambda c: row[c]) == target
        count[half] += 1
    base_accuracy, new_accuracy = (right[half] / count[half] for half in ("base", "new"))
    return base_accuracy, new_accuracy


@pytest.mark.parametrize("base", [(0, 1, 2, 3), (6, 0, 3), (5,)])
def test_as_counted_by_hand(base):
    logits, targets = torch.randn(200, 7), torch.arange(200) % 7
    logits[torch.arange(200), targets] += 1.0
    found = metrics(sums(logits, targets, base))
    base_accuracy, new_accuracy = by_hand(logits, targets, base)
    assert found == pytest.approx(
        {
            "base_accuracy": base_accuracy,
            "new_accuracy": new_accuracy,
            "harmonic_mean": 2 / (1 / base_accuracy + 1 / new_accuracy),
        }
    )


def test_rivals_of_the_other_half_do_not_matter():
    logits = torch.tensor([[1.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 1.0]])
    assert sums(logits, torch.tensor([0, 3]), (0, 1)) == {
        "base_rows": 1,
        "base_right": 1,
        "new_rows": 1,
        "new_right": 1,
    }
    assert sums(logits, torch.tensor([2, 3]), (0, 1))["new_rows"] == 2


def test_sums_of_parts_are_the_sums_of_all():
    logits, targets = torch.randn(60, 6), torch.randint(0, 6, (60,))
    whole = sums(logits, targets, (0, 1, 2))
    parts = [sums(logits[i : i + 7], targets[i : i + 7], (0, 1, 2)) for i in range(0, 60, 7)]
    assert whole == {name: sum(part[name] for part in parts) for name in whole}
    assert all(column.shape == (60,) for column in columns(logits, targets, (0, 1, 2)).values())


def test_of_the_paper():
    """EuroSAT in ABKD's Table 16: base 97.75 and new 83.92 have the harmonic mean 90.31 (it prints 90.30)."""
    totals = {"base_rows": 10000, "base_right": 9775, "new_rows": 10000, "new_right": 8392}
    assert 100 * metrics(totals)["harmonic_mean"] == pytest.approx(90.31, abs=5e-3)


def test_nothing_right_and_nothing_there():
    none = {"base_rows": 4.0, "base_right": 0.0, "new_rows": 3.0, "new_right": 0.0}
    assert metrics(none) == {"base_accuracy": 0.0, "new_accuracy": 0.0, "harmonic_mean": 0.0}
    assert metrics({**none, "new_rows": 0.0, "base_right": 1.0}) == {"base_accuracy": 0.25}
    assert metrics(dict.fromkeys(none, 0.0)) == {}
    empty = columns(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (0,))
    assert all(column.shape == (0,) for column in empty.values())


def test_certain_logits():
    """An impossible class (-inf) does not win, even if all other classes are impossible."""
    logits = torch.tensor([[-math.inf, 0.0, 5.0, 5.0]])
    assert sums(logits, torch.tensor([1]), (0, 1))["base_right"] == 1
    assert sums(logits, torch.tensor([0]), (0, 1))["base_right"] == 0


@pytest.mark.parametrize("base", [(), (0, 1, 2), (1, 7), (-1,)])
def test_halves_that_are_none(base):
    with pytest.raises(ConfigError, match="base classes must be some of the model's classes, but not all"):
        columns(torch.zeros(2, 3), torch.tensor([0, 1]), base)
