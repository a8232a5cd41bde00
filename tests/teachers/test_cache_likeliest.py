"""The storage of the top-k classes: size, error, and edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from abkd.teachers.caches._likeliest import decode, encode


def stored_and_read(logits: torch.Tensor, k: int, temperature: float = 1.0):
    targets = torch.zeros(len(logits), dtype=torch.int64)
    stored = encode(logits, targets, k, temperature)
    return stored, decode(stored, logits.shape[-1])


@pytest.mark.parametrize(
    ("classes", "most"), [(300, 268), (49_152, 268), (65_537, 284), (1 << 18, 284), (262_145, 300)]
)
def test_ids_of_16_18_and_20_bits_in_at_most_300_bytes(classes: int, most: int) -> None:
    logits = torch.randn(3, classes) * 3
    logits[:, -1], logits[:, 0] = 20.0, 19.0  # the ends of the range of ids
    stored, rows = stored_and_read(logits, 64)
    assert torch.equal(rows.ids, logits.topk(64, -1).indices)
    assert sum(column.nbytes for column in stored.values()) == 3 * most


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_any_k(k: int) -> None:
    logits = torch.randn(4, 70_000)
    logits[:, -9:] += 30
    _, rows = stored_and_read(logits, k)
    assert torch.equal(rows.ids, logits.topk(k, -1).indices)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 8.0, 30.0])
def test_the_error_is_at_most_a_step_and_smaller_than_that_of_half_precision(sharpness: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(64, 2000) * sharpness
    _, rows = stored_and_read(logits, 64)
    exact = torch.log_softmax(logits.double(), -1).topk(64, -1).values
    ours = (rows.log_p - exact).abs()
    span = exact[:, 0] - exact[:, -1]
    assert (ours.amax(-1) <= span / 65534 + 2e-6).all()
    assert ours.max() < (exact.half() - exact).abs().max()
    mass = rows.log_p.double().exp().sum(-1) + rows.log_tail.double().exp()
    torch.testing.assert_close(mass, torch.ones(64, dtype=torch.float64), rtol=0, atol=1e-6)


def test_edges() -> None:
    """All mass in one class; all of it spread out; impossible classes; a tail without classes."""
    certain = torch.zeros(1, 500)
    certain[0, 7] = 200.0
    _, rows = stored_and_read(certain, 4)
    assert rows.ids[0, 0] == 7
    assert rows.log_p[0, 0] == 0
    assert rows.log_p[0, 1].item() == pytest.approx(-200, rel=1e-5)
    assert rows.log_tail.item() == pytest.approx(-200 + math.log(496), rel=1e-6)

    even = torch.zeros(1, 100_000)
    _, rows = stored_and_read(even, 1)
    assert rows.log_p.item() == pytest.approx(-math.log(100_000), rel=1e-5)
    assert -math.expm1(rows.log_tail.item()) == pytest.approx(1e-5, rel=1e-2)

    barred = torch.randn(2, 50)
    barred[:, 5:] = -torch.inf
    _, rows = stored_and_read(barred, 10)
    assert rows.log_p.exp().sum(-1).tolist() == pytest.approx([1, 1])
    assert (rows.log_p == -torch.inf).sum(-1).tolist() == [5, 5]
    assert (rows.log_tail == -torch.inf).all()
    torch.testing.assert_close(rows.log_p[:, :5].exp(), barred.softmax(-1).topk(5, -1).values, rtol=1e-4, atol=0)


def test_tempered_probabilities_and_a_plain_target() -> None:
    logits = torch.randn(5, 90) * 3
    targets = torch.arange(5)
    rows = decode(encode(logits, targets, 90, 4.0), 90)
    exact = torch.log_softmax(logits / 4.0, -1).gather(-1, rows.ids)
    torch.testing.assert_close(rows.log_p, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.log_target, torch.log_softmax(logits, -1)[torch.arange(5), targets])
